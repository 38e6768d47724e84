"""`headrace keys`, on a data folder of its own."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.commands.keys import keys
from headrace.errors import HeadraceError, InvalidRequest, NotFound
from headrace.server.keys import KeyStore

pytestmark = pytest.mark.usefixtures("home")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(keys, arguments)
    if isinstance(result.exception, HeadraceError):
        raise result.exception
    return result


def test_create_shows_the_key_alone_on_stdout() -> None:
    done = run("create", "laptop")
    record = KeyStore().lookup(done.stdout.strip())
    assert record is not None and record.name == "laptop"
    assert record.id in done.stderr and "only now" in done.stderr


def test_list_shows_all_and_never_a_key() -> None:
    secret = run("create", "[bold]laptop").stdout.strip()
    run("create", "old")
    run("revoke", "old")
    told = run("list").stdout
    assert "[bold]laptop" in told and "live" in told
    assert "old" in told and "revoked 20" in told
    assert secret not in told
    assert f"{secret[:7]}…{secret[-4:]}" in told


def test_list_as_json_is_without_hashes() -> None:
    run("create", "laptop")
    (told,) = json.loads(run("list", "--json").stdout)["keys"]
    assert set(told) == {"id", "name", "hint", "created_at", "revoked_at"}


def test_an_empty_list_says_how_to_begin() -> None:
    assert "headrace keys create NAME" in run("list").stdout


def test_revoke() -> None:
    secret = run("create", "laptop").stdout.strip()
    run("create", "other")
    done = run("revoke", "laptop")
    assert "Revoked 'laptop'" in done.stdout and not done.stderr
    assert KeyStore().lookup(secret) is None
    assert "No key is live now" in run("revoke", "other").stderr


def test_errors_are_told_not_traced(home: Path) -> None:
    with pytest.raises(NotFound, match="headrace keys list"):
        run("revoke", "nobody")
    run("create", "laptop")
    with pytest.raises(InvalidRequest, match="laptop"):
        run("create", "laptop")
