"""The same `Idempotency-Key` again is the same question: its answer is attached to, not made anew.

In: a tenant, its key, and what it asks. Out: the stream that answers, or leave to make it.
Thread: the event loop. Next: `respond.py`.

A key stands for an answer that is being made or is whole, as long as its stream is kept. One that
failed, or was stopped, frees its key: who asks again wants an answer, not the failure once more,
and never half of one that looks whole.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from headrace.errors import IdempotencyConflict, InvalidRequest
from headrace.server.telling import Telling
from headrace.streams.keeping import KeptStreams
from headrace.streams.kept import Kept

HEADER = "idempotency-key"
_LONGEST_KEY = 255
_WHOLE = frozenset({"stop", "length", "tool_calls"})
"""How choices end whose answer is worth another look."""


@dataclass(slots=True, eq=False)
class Claim:
    """One key's question. Who makes it answers it, or gives it up."""

    digest: bytes
    kept: asyncio.Future[Kept[Telling] | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """None: whoever claimed it was refused."""


class Idempotency:
    """The keys in use: as long as their streams are kept."""

    def __init__(self, streams: KeptStreams[Telling]) -> None:
        self._claims: dict[tuple[str, str], Claim] = {}
        self._by_stream: dict[str, tuple[str, str]] = {}
        streams.when_gone(self._forget)

    def __len__(self) -> int:
        return len(self._claims)

    async def attach(self, tenant: str, key: str, digest: bytes) -> Kept[Telling] | None:
        """As `find`; where there is none, the caller is to answer, and then to `settle` or
        `give_up`."""
        found = await self.find(tenant, key, digest)
        if found is None:
            self._claims[tenant, key] = Claim(digest)
        return found

    async def find(self, tenant: str, key: str, digest: bytes) -> Kept[Telling] | None:
        """The stream that answers the question of that digest already. Raises
        `IdempotencyConflict` where the key asks something else now."""
        if not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidRequest(
                f"`Idempotency-Key` must have 1 to {_LONGEST_KEY} characters", param=HEADER
            )
        while (claim := self._claims.get((tenant, key))) is not None:
            if claim.digest != digest:
                raise IdempotencyConflict(
                    "this `Idempotency-Key` was used with another body; use a new key for it",
                    param=HEADER,
                )
            # Whoever waits here may leave; the claim is not theirs to cancel.
            kept = await asyncio.shield(claim.kept)
            if kept is not None:
                return kept
        return None

    def settle(self, tenant: str, key: str, kept: Kept[Telling]) -> None:
        """The claim is answered by `kept`."""
        claim = self._claims[tenant, key]
        self._by_stream[kept.id] = (tenant, key)
        claim.kept.set_result(kept)
        kept.pump.when_over(lambda: self._judge(kept))

    def restore(self, tenant: str, key: str, digest: bytes, kept: Kept[Telling]) -> None:
        """`kept` has answered a question since before the server was restarted. Of several, the
        last one counts."""
        before = self._claims.get((tenant, key))
        if before is not None and before.kept.done() and (old := before.kept.result()) is not None:
            self._by_stream.pop(old.id, None)
        self._claims[tenant, key] = Claim(digest)
        self.settle(tenant, key, kept)

    def give_up(self, tenant: str, key: str) -> None:
        """Whoever claimed it was refused; the next one may try."""
        self._claims.pop((tenant, key)).kept.set_result(None)

    def _judge(self, kept: Kept[Telling]) -> None:
        if not _WHOLE.issuperset(kept.pump.tally.reasons):
            self._forget(kept.id)

    def _forget(self, stream_id: str) -> None:
        claimed = self._by_stream.pop(stream_id, None)
        if claimed is not None:
            self._claims.pop(claimed, None)
