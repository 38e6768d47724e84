"""`headrace keys`: who may use the server."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.server.keys import KeyRecord, KeyStore

_WIDE = 240


@click.group(short_help="Make, list and revoke keys for the server.")
def keys() -> None:
    """Make, list and revoke keys for the server.

    Without any key the server is open to this machine and to no other. With one, each request needs
    a key; that stays so when all are revoked. A running server knows of changes a second later.

    \b
    Examples:
      headrace keys create laptop
      headrace keys list
      headrace keys revoke laptop

    Keys are kept, hashed, in $HEADRACE_HOME/keys.json.
    """


@keys.command()
@click.argument("name")
def create(name: str) -> None:
    """Make a key and show it, this once.

    NAME is for you, to tell keys apart by. Limits, caches and logs go by key. On stdout there is
    the key alone, for scripts.

    \b
    Examples:
      headrace keys create laptop
      export HEADRACE_API_KEY=$(headrace keys create ci)
    """
    record, secret = KeyStore().create(name)
    click.echo(secret)
    click.echo(
        f"The key {record.name!r} ({record.id}). It is shown only now: keep it in a safe place.\n"
        "Send it as `Authorization: Bearer KEY`, or as the client's api_key.",
        err=True,
    )


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def list_keys(as_json: bool) -> None:
    """List all keys, revoked ones too; never the keys themselves.

    \b
    Examples:
      headrace keys list
      headrace keys list --json
    """
    records = KeyStore().list()
    if as_json:
        click.echo(json.dumps({"keys": [_as_json(record) for record in records]}, indent=2))
    elif records:
        _show(records)
    else:
        click.echo("There are no keys. Make one: headrace keys create NAME")


@keys.command()
@click.argument("name", metavar="ID|NAME")
def revoke(name: str) -> None:
    """Make a key invalid, for ever.

    It is named as when it was made, or by its id, which `headrace keys list` shows.

    \b
    Example:
      headrace keys revoke laptop
    """
    store = KeyStore()
    record = store.revoke(name)
    click.echo(f"Revoked {record.name!r} ({record.id}).")
    if not any(each.is_live for each in store.list()):
        click.echo(
            "No key is live now, so the server answers nobody: make another, or delete "
            f"{store.path} to open it to this machine again.",
            err=True,
        )


def _as_json(record: KeyRecord) -> dict[str, object]:
    told = asdict(record)
    del told["digest"]
    return told


def _show(records: list[KeyRecord]) -> None:
    console = Console()
    if not console.is_terminal:  # Lines of a pipe have no width to keep to.
        console = Console(width=_WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "ID", "KEY", "CREATED", "STATE"):
        table.add_column(title, overflow="fold", no_wrap=title != "NAME")
    for record in records:
        state = "live" if record.is_live else f"revoked {record.revoked_at}"
        table.add_row(
            Text(record.name),
            record.id,
            record.hint,
            record.created_at,
            Text(state, style="green" if record.is_live else "dim"),
        )
    console.print(table)
