"""Whose socket it is: by the `Authorization` header or, for browsers, by a subprotocol.

In: the scope of an upgrade. Out: the tenant, asked anew for each question. Thread: the event loop.
Next: `chat.py`.

A browser can send no header with a WebSocket, but it can offer subprotocols:

    new WebSocket(url, ["headrace", "headrace.key.gsk_…"])

The server takes `headrace`, so that the key is never sent back.
"""

from __future__ import annotations

from starlette.types import Scope

from headrace.server.access import Access, Tenant

SUBPROTOCOL = "headrace"
_KEY = "headrace.key."


class Caller:
    """One client, whose key may be revoked while its socket is open."""

    def __init__(self, access: Access, scope: Scope) -> None:
        self._access = access
        self._headers = _credentials(scope)
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None

    def tenant(self) -> Tenant:
        """Raises `AuthenticationFailed`."""
        return self._access.authenticate(self._headers)


def _credentials(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The header that says who it is; of two keys the header's counts."""
    headers = [(name, value) for name, value in scope["headers"] if name == b"authorization"]
    keys = [name for name in scope.get("subprotocols", ()) if name.startswith(_KEY)]
    if headers or not keys:
        return headers
    return [
        (b"authorization", b"Bearer " + keys[0].removeprefix(_KEY).encode("latin-1", "replace"))
    ]
