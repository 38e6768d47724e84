"""A permit before work: each request reserves its share of its tenant's limits, or is refused.

In: who asks which model for how many tokens. Out: a `Permit`, or RateLimited that says when to come
again. Thread: the event loop. Next: `store.py`.

Reserved are one request, the estimated prompt, and `max_tokens` where the request sets it. When the
answer is over, the permit is settled: what was not used goes back, what came out longer counts, and
tokens from the cache are free. A stream that was admitted is never cut, so a bucket may overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.errors import RateLimited, RequestTooLarge
from headrace.server.limits.bucket import TICKS_PER_S, Limit
from headrace.server.limits.store import MemoryStore, Reservation, Shortage, Store, Want
from headrace.server.limits.table import LimitTable, Row
from headrace.wire.durations import go_duration

ON_DEMAND = "on_demand"


class Limiter:
    """Limits per tenant and model as asked for."""

    def __init__(
        self,
        table: LimitTable,
        store: Store | None = None,
        *,
        limited_as: Callable[[str], str] = lambda model: model,
    ) -> None:
        """`limited_as`: under which name a model as asked for is counted."""
        self._limited_as = limited_as
        self._table = table
        self._store = MemoryStore() if store is None else store

    async def admit(
        self,
        tenant: str,
        model: str,
        num_prompt_tokens: int,
        max_tokens: int | None,
        service_tier: str = ON_DEMAND,
        *,
        num_requests: int = 1,
    ) -> Permit:
        """Reserve what the request may use, of all its limits or of none.

        Args:
            tenant: `Tenant.id`.
            model: as asked for.
            num_prompt_tokens: an estimate.
            max_tokens: as asked for, times the number of choices; None where it was not set.
            service_tier: what the message calls it; all tiers share the limits.
            num_requests: 0 where it is work for a request that counts itself.

        Raises RequestTooLarge where no waiting could help, else RateLimited with the wait in whole
        seconds: who waits that long is admitted if nobody else comes in between, and a second
        earlier is not. A refused request counts for nothing.
        """
        num_tokens = num_prompt_tokens + (max_tokens or 0)
        name = self._limited_as(model)
        wants = _wants(self._table.row(name), tenant, name, num_tokens, num_requests)
        for want in wants:
            if want.amount > want.limit.amount:
                raise _too_large(want, _whose(tenant, model, service_tier))
        granted = await self._store.reserve(wants)
        if isinstance(granted, Shortage):
            raise _limited(granted, _whose(tenant, model, service_tier))
        return Permit(wants, granted, num_requests)

    def readmit(
        self, tenant: str, model: str, num_prompt_tokens: int, max_tokens: int | None
    ) -> Permit:
        """The same for a request that a server before this one admitted: it is never refused, but
        what it uses counts."""
        num_tokens = num_prompt_tokens + (max_tokens or 0)
        name = self._limited_as(model)
        wants = _wants(self._table.row(name), tenant, name, num_tokens, num_requests=1)
        return Permit(wants, self._store.take(wants))

    def headers(self, tenant: str, model: str) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-*`: requests per day and tokens per minute; none where nothing is set.

        Where only the other window is limited, it is told instead.
        """
        name = self._limited_as(model)
        row = self._table.row(name)
        told: list[tuple[bytes, bytes]] = []
        for limit in (row.requests, row.tokens):
            if limit is not None:
                told += self._told(tenant, name, limit)
        return sorted(told, key=lambda header: header[0])

    def _told(self, tenant: str, model: str, limit: Limit) -> list[tuple[bytes, bytes]]:
        level = self._store.level((tenant, model, limit.dimension), limit)
        values = {
            "limit": str(limit.amount),
            "remaining": str(max(0, limit.amount - level.used)),
            "reset": _duration(level.reset_ticks),
        }
        return [
            (f"x-ratelimit-{name}-{limit.kind}".encode(), value.encode())
            for name, value in values.items()
        ]


class Permit:
    """What one admitted request holds, until it is settled or cancelled: whichever comes first.

    One that is forgotten leaks away like what was used.
    """

    def __init__(
        self, wants: Sequence[Want], reservation: Reservation, num_requests: int = 1
    ) -> None:
        self._wants = wants
        self._num_requests = num_requests
        self._reservation: Reservation | None = reservation

    def settle(
        self, num_prompt_tokens: int, num_cached_tokens: int, num_completion_tokens: int
    ) -> None:
        """Say what was really used, by all choices, when nothing more can come."""
        num_tokens = max(0, num_prompt_tokens - num_cached_tokens) + num_completion_tokens
        self._end([_amount(want.limit, num_tokens, self._num_requests) for want in self._wants])

    def cancel(self) -> None:
        """Give everything back, the request too: it was refused before it reached the engine."""
        self._end([0] * len(self._wants))

    def _end(self, amounts: Sequence[int]) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.settle(amounts)


def _amount(limit: Limit, num_tokens: int, num_requests: int) -> int:
    """What so many requests, with so many tokens together, take of a limit."""
    return num_requests if limit.kind == "requests" else num_tokens


def _wants(
    row: Row, tenant: str, model: str, num_tokens: int, num_requests: int
) -> tuple[Want, ...]:
    return tuple(
        Want(
            key=(tenant, model, limit.dimension),
            limit=limit,
            amount=_amount(limit, num_tokens, num_requests),
        )
        for limit in row.limits
    )


def _whose(tenant: str, model: str, service_tier: str) -> str:
    tier = ON_DEMAND if service_tier == "auto" else service_tier
    organization = f"org_{tenant.removeprefix('key_')}"
    return f"for model `{model}` in organization `{organization}` service tier `{tier}`"


def _limited(shortage: Shortage, whose: str) -> RateLimited:
    want, limit = shortage.want, shortage.want.limit
    return RateLimited(
        f"Rate limit reached {whose} on {limit.name} ({limit.dimension}): "
        f"Limit {limit.amount}, Used {shortage.used}, Requested {want.amount}. "
        f"Please try again in {_duration(shortage.wait_ticks)}.",
        wire_type=limit.kind,
        retry_after_s=float(-(-shortage.wait_ticks // TICKS_PER_S)),
        limit=limit.dimension,
    )


def _duration(ticks: int) -> str:
    """Rounded up to the millisecond: what is shorter is written with a letter that headers lack."""
    return go_duration(-(-ticks * 1000 // TICKS_PER_S) / 1000)


def _too_large(want: Want, whose: str) -> RequestTooLarge:
    limit = want.limit
    return RequestTooLarge(
        f"Request too large {whose} on {limit.name} ({limit.dimension}): "
        f"Limit {limit.amount}, Requested {want.amount}, "
        "please reduce your message size and try again.",
        wire_type=limit.kind,
        retry_after_s=None,
        limit=limit.dimension,
    )
