"""Short-lived leave to read one stream, for those who cannot send a key: a browser's `EventSource`.

In: a stream's id and its tenant. Out: a token for the URL. Thread: any. Next: `streams.py`.

A token names its tenant and its end, and is signed for one stream. It reads, and does nothing else:
it neither stops the stream nor begets another token.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headrace.errors import AuthenticationFailed

LIFETIME_S = 3600.0
KEY_FILE = "stream-tokens.key"
_KEY_BYTES = 32
_MOST_CHARACTERS = 1024
_OWNER_ONLY = 0o600


class StreamTokens:
    """Signs and checks."""

    def __init__(self, key: bytes | None = None, clock: Callable[[], float] = time.time) -> None:
        """`key` None: what is signed dies with this process. `clock` gives Unix seconds."""
        self._key = key or secrets.token_bytes(_KEY_BYTES)
        self._clock = clock

    def make(self, stream_id: str, tenant: str) -> str:
        """Leave to read this stream, as this tenant, for an hour."""
        named = base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=")
        claim = f"{self.expiry()}.{named}"
        return f"{claim}.{self._signature(claim, stream_id)}"

    def expiry(self) -> int:
        """When a token that is made now ends, in Unix seconds."""
        return int(self._clock() + LIFETIME_S)

    def tenant(self, stream_id: str, token: str) -> str:
        """Whose leave it is. Raises `AuthenticationFailed`."""
        claim, _, signature = token[:_MOST_CHARACTERS].rpartition(".")
        expected = self._signature(claim, stream_id)
        if not hmac.compare_digest(signature.encode(errors="replace"), expected.encode()):
            raise _invalid()
        # From here on it is what we wrote ourselves.
        expires_at, _, named = claim.partition(".")
        if int(expires_at) < self._clock():
            raise _invalid()
        return base64.urlsafe_b64decode(named + "=" * (-len(named) % 4)).decode()

    def _signature(self, claim: str, stream_id: str) -> str:
        # With the length before them, no two pairs read the same.
        text = f"{len(claim)}.{claim}.{stream_id}".encode(errors="replace")
        return hmac.new(self._key, text, "sha256").hexdigest()


def kept_key(folder: Path) -> bytes:
    """The key of this data folder, made where there is none: tokens outlive the process with it.
    Raises `OSError`."""
    path = folder / KEY_FILE
    with suppress(FileNotFoundError):
        if len(key := path.read_bytes()) == _KEY_BYTES:
            return key
        path.unlink()  # cut off while it was written
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{KEY_FILE}.{os.getpid()}"
    created = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY)
    with os.fdopen(created, "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
    with suppress(FileExistsError):  # another process was first: its key counts
        os.link(fresh, path)
    fresh.unlink()
    return path.read_bytes()


def _invalid() -> AuthenticationFailed:
    return AuthenticationFailed("the stream's token is not valid, or not any more; ask for another")
