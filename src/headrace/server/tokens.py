"""Short-lived leave to read one stream, for those who cannot send a key: a browser's `EventSource`.

In: a stream's id and its tenant. Out: a token for the URL. Thread: any.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Callable

from headrace.errors import AuthenticationFailed

LIFETIME_S = 3600.0
_KEY_BYTES = 32


class StreamTokens:
    """Signs and checks; what it signed dies with it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._clock = clock

    def make(self, stream_id: str, tenant: str) -> str:
        """Leave to read this stream, as this tenant, for an hour."""
        expires_at = int(self._clock() + LIFETIME_S)
        named = base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=")
        return f"{expires_at}.{named}.{self._signature(stream_id, tenant, expires_at)}"

    def tenant(self, stream_id: str, token: str) -> str:
        """Whose leave it is. Raises `AuthenticationFailed`."""
        expires_at, _, rest = token.partition(".")
        named, _, signature = rest.partition(".")
        try:
            tenant = base64.urlsafe_b64decode(named + "=" * (-len(named) % 4)).decode()
            due = int(expires_at)
        except ValueError:
            raise _invalid() from None
        expected = self._signature(stream_id, tenant, due)
        if not hmac.compare_digest(signature.encode(), expected.encode()) or due < self._clock():
            raise _invalid()
        return tenant

    def _signature(self, stream_id: str, tenant: str, expires_at: int) -> str:
        text = f"{stream_id}\n{tenant}\n{expires_at}".encode()
        return hmac.new(self._key, text, "sha256").hexdigest()


def _invalid() -> AuthenticationFailed:
    return AuthenticationFailed("the stream's token is not valid, or not any more; ask for another")
