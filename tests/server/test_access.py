"""Who is let in, as whom, and where a server may listen."""

from pathlib import Path

import pytest

from headrace.errors import AuthenticationFailed, SettingsError
from headrace.server.access import LOCAL, Access, Tenant, check_binding, is_loopback
from headrace.server.keys import KeyStore


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def bearing(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"authorization", value.encode("latin-1")) for value in values)]


@pytest.mark.parametrize("values", [[], ["Bearer your_key"], ["nonsense"], ["Bearer "]])
def test_without_keys_anybody_is_local(keys: KeyStore, values: list[str]) -> None:
    access = Access(keys)
    assert access.is_open
    assert access.authenticate(bearing(*values)) == LOCAL


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_a_key_is_its_owners(keys: KeyStore, scheme: str) -> None:
    record, secret = keys.create("laptop")
    access = Access(keys)
    assert not access.is_open
    tenant = access.authenticate(bearing(scheme + secret))
    assert tenant == Tenant(id=record.id, name="laptop", key_id=record.id)


def test_each_key_is_a_tenant_of_its_own(keys: KeyStore) -> None:
    secrets = [keys.create(name)[1] for name in ("a", "b")]
    access = Access(keys)
    assert len({access.authenticate(bearing(f"Bearer {s}")).id for s in secrets} | {"local"}) == 3


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer ÿ"])
def test_with_keys_all_others_are_refused(keys: KeyStore, value: str | None) -> None:
    keys.create("laptop")
    with pytest.raises(AuthenticationFailed) as refused:
        Access(keys).authenticate(bearing(*([] if value is None else [value])))
    error = refused.value
    assert (error.message, error.code, error.status) == ("Invalid API Key", "invalid_api_key", 401)


def test_another_scheme_is_no_key(keys: KeyStore) -> None:
    _, secret = keys.create("laptop")
    for value in (f"Basic {secret}", secret):
        with pytest.raises(AuthenticationFailed):
            Access(keys).authenticate(bearing(value))


def test_a_second_header_does_not_help(keys: KeyStore) -> None:
    _, secret = keys.create("laptop")
    with pytest.raises(AuthenticationFailed):
        Access(keys).authenticate(bearing("Bearer wrong", f"Bearer {secret}"))


def test_a_revoked_key_is_refused_and_nothing_opens(keys: KeyStore) -> None:
    _, secret = keys.create("laptop")
    keys.revoke("laptop")
    for values in ([f"Bearer {secret}"], []):
        with pytest.raises(AuthenticationFailed):
            Access(keys).authenticate(bearing(*values))


def test_a_key_made_meanwhile_closes_an_open_server(keys: KeyStore) -> None:
    access = Access(keys)
    assert access.authenticate([]) == LOCAL
    keys.create("laptop")
    with pytest.raises(AuthenticationFailed):
        access.authenticate([])


LOOPBACK = ["127.0.0.1", "127.8.9.1", "localhost", "LocalHost", "::1", "[::1]"]
BEYOND = ["0.0.0.0", "::", "", "192.168.1.5", "box.local", "localhost.example.com", "127.0.0.1.nip"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_binding(host, has_keys=False, insecure=False)


@pytest.mark.parametrize("host", BEYOND)
def test_elsewhere_needs_a_key_or_the_word_insecure(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(SettingsError, match=r"headrace keys create NAME.*--insecure"):
        check_binding(host, has_keys=False, insecure=False)
    check_binding(host, has_keys=True, insecure=False)
    check_binding(host, has_keys=False, insecure=True)
