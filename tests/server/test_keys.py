"""Keys: made once, kept hashed, revoked, and known by a server that is running."""

import hashlib
import json
import stat
from pathlib import Path
from threading import Thread

import pytest
from filelock import FileLock

from headrace.errors import InvalidRequest, NotFound, SettingsError, StorageError
from headrace.server import keys as keys_module
from headrace.server.keys import KeyStore
from headrace.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


def test_a_key_is_known_until_it_is_revoked(path: Path) -> None:
    store = KeyStore(path)
    record, secret = store.create("laptop")
    assert store.lookup(secret) == record
    assert (record.name, record.is_live) == ("laptop", True)
    store.revoke("laptop")
    assert store.lookup(secret) is None
    assert [key.is_live for key in store.list()] == [False]


def test_keys_are_long_random_and_plain_to_copy(path: Path) -> None:
    store = KeyStore(path)
    secrets = {store.create(f"n{number}")[1] for number in range(20)}
    assert len(secrets) == 20
    for secret in secrets:
        prefix, _, rest = secret.partition("_")
        assert (prefix, len(rest)) == ("hr", 43)
        assert rest.isalnum() and rest.isascii()


@pytest.mark.parametrize("secret", ["", "hr_", "hr_" + "a" * 43, "ключ", "\udcff", "x" * 100_000])
def test_others_are_not_known(path: Path, secret: str) -> None:
    store = KeyStore(path)
    store.create("laptop")
    assert store.lookup(secret) is None


def test_a_key_that_is_cut_or_changed_is_not_known(path: Path) -> None:
    store = KeyStore(path)
    _, secret = store.create("laptop")
    for other in (secret[:-1], secret + "a", secret.swapcase(), f" {secret}"):
        assert store.lookup(other) is None


def test_the_file_holds_a_hash_and_is_its_owners_alone(path: Path) -> None:
    record, secret = KeyStore(path).create("laptop")
    text = path.read_text("utf-8")
    assert secret not in text and secret[3:-4] not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert record.hint == f"{secret[:7]}…{secret[-4:]}"


def test_it_stays_private_however_it_was(path: Path) -> None:
    store = KeyStore(path)
    store.create("a")
    path.chmod(0o644)
    store.create("b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_can_be_used_again_when_its_key_is_revoked(path: Path) -> None:
    store = KeyStore(path)
    first, _ = store.create("ci")
    with pytest.raises(InvalidRequest, match="'ci' already"):
        store.create("ci")
    store.revoke("ci")
    second, secret = store.create("ci")
    assert store.revoke(first.id).id == first.id
    assert store.lookup(secret) == second
    store.revoke("ci")
    assert store.lookup(secret) is None


def test_revoking_twice_keeps_the_first_moment(path: Path) -> None:
    store = KeyStore(path)
    record, _ = store.create("ci")
    revoked = store.revoke(record.id)
    assert store.revoke(record.id) == revoked


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65, "hr_abc", "key_1"])
def test_names_that_are_none(path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        KeyStore(path).create(name)
    assert not path.exists()


def test_revoking_nobody_repeats_nothing(path: Path) -> None:
    with pytest.raises(NotFound) as refused:
        KeyStore(path).revoke("hr_pasted")
    assert "hr_pasted" not in refused.value.message


def test_a_running_server_learns_of_changes_a_second_later(path: Path) -> None:
    clock = ManualClock()
    server = KeyStore(path, clock)
    assert not server.is_configured
    _, secret = KeyStore(path).create("laptop")
    clock.advance(0.9)
    assert server.lookup(secret) is None
    clock.advance(0.1)
    assert server.lookup(secret) is not None
    assert server.is_configured
    KeyStore(path).revoke("laptop")
    clock.advance(1)
    assert server.lookup(secret) is None


def test_without_its_file_a_server_that_had_keys_knows_none_and_stays_closed(path: Path) -> None:
    clock = ManualClock()
    server = KeyStore(path, clock)
    _, secret = server.create("laptop")
    path.unlink()
    clock.advance(1)
    assert server.lookup(secret) is None
    assert server.is_configured


def test_revoking_the_last_key_opens_nothing(path: Path) -> None:
    KeyStore(path).create("laptop")
    KeyStore(path).revoke("laptop")
    assert KeyStore(path).is_configured


def test_a_file_that_breaks_changes_nothing_for_a_running_server(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    server = KeyStore(path, clock)
    _, secret = server.create("laptop")
    path.write_text("{", "utf-8")
    for _ in range(3):
        clock.advance(1)
        assert server.lookup(secret) is not None
    assert caplog.text.count("keys stay as they were") == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        "{}",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": 3}',
        '{"version": 1, "keys": [3]}',
        '{"version": 1, "keys": [{}]}',
        json.dumps(
            {
                "version": 1,
                "keys": [
                    {
                        "id": "key_1",
                        "name": "a",
                        "digest": "short",
                        "hint": "",
                        "created_at": "",
                        "revoked_at": None,
                    }
                ],
            }
        ),
        "\x00\x01",
    ],
)
def test_a_file_that_is_no_file_of_keys_is_refused_at_first(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    with pytest.raises(SettingsError, match=r"keys\.json .* `headrace keys create`"):
        KeyStore(path)


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"keys\.json cannot be read"):
        KeyStore(path)


def test_many_at_once_lose_no_key(path: Path) -> None:
    threads = [Thread(target=KeyStore(path).create, args=(f"n{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyStore(path).list()) == [f"n{n}" for n in range(8)]


def test_who_waits_too_long_for_another_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "_LOCK_TIMEOUT_S", 0.01)
    store = KeyStore(path)
    store.create("a")
    with (
        FileLock(path.with_name(".keys.json.lock")),
        pytest.raises(StorageError, match="another headrace"),
    ):
        store.create("b")
    assert [key.name for key in store.list()] == ["a"]


def test_by_default_keys_are_in_the_data_folder(home: Path) -> None:
    KeyStore().create("laptop")
    assert (home / "keys.json").exists()
