"""Who is asking: a key's owner, or anybody at all where the server is open.

In: a request's headers. Out: its `Tenant`. Thread: the event loop. Next: `limits/limiter.py`.

A server without keys that only this machine can reach is open: any token will do, or none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from headrace.errors import AuthenticationFailed, SettingsError
from headrace.server.keys import KeyStore


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of a request; limits, caches and fairness go by `id`."""

    id: str
    name: str
    key_id: str | None = None
    """None on an open server."""


LOCAL = Tenant(id="local", name="local")
"""Everybody on an open server."""


class Access:
    """Knows tenants by their keys. A key that is made while an open server runs closes it."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    @property
    def is_open(self) -> bool:
        """Whether requests need no key."""
        return not self._keys.is_configured

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Tenant:
        """The tenant of a request with these headers, as ASGI gives them: names in lower case.

        Raises AuthenticationFailed.
        """
        if self.is_open:
            return LOCAL
        secret = _bearer(headers)
        record = self._keys.lookup(secret) if secret else None
        if record is None:
            raise AuthenticationFailed("Invalid API Key")
        return Tenant(id=record.id, name=record.name, key_id=record.id)

    def knows(self, tenant_id: str) -> bool:
        """Whether a tenant may still come: its key was not revoked, or the server is open."""
        if self.is_open:
            return tenant_id == LOCAL.id
        return self._keys.is_live(tenant_id)


def check_binding(host: str, has_keys: bool, insecure: bool) -> None:
    """Raise SettingsError where other machines could use the server without a key."""
    if has_keys or insecure or is_loopback(host):
        return
    raise SettingsError(
        f"host: {host or 'every address'} can be reached from other machines, and there are no "
        "keys. Make one with `headrace keys create NAME`, serve on 127.0.0.1, or let anybody in "
        "with --insecure."
    )


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this host, by what it is called; nothing is looked up.

    An IPv6 address may stand in brackets.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").strip().partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None
