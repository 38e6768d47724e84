"""Which sequences get how many tokens this step.

In: sequences, and what the KV cache can hold. Out: plans, as values. Thread: the engine thread
only. Next: `engine/kv_cache.py`.

One rule, no modes: a sequence has tokens and computed tokens; each step lets sequences catch up.
Who is one token behind goes on (a *stream*: a reader waits for every token); what the budget leaves
lets the others catch up, in turn. A step's budget is time: no stream waits for more than one
bounded step.

The eldest running sequence is never preempted, so one always reaches its end; the first in line is
never passed over for want of banks, so each becomes the eldest in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from headrace.engine.cost import CostModel
from headrace.engine.kv_cache import BankCopy, BankKey, KVCache
from headrace.engine.pins import TurnEnd
from headrace.engine.sequence import Sequence, State
from headrace.engine.shifting import BankMove
from headrace.engine.waiting_line import Turn, WaitingLine
from headrace.errors import ContextLengthExceeded, InvalidRequest

CHUNK: Final = 16
"""Prompts are cut at multiples of so many tokens: the kernels' tile."""
LEAST_CHUNK: Final = 8
"""So many, half a tile, a step computes of a prompt where its time has room for none."""
_MAJORITY: Final = 1.5

_RUNNING: Final = State.RUNNING


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step."""

    max_running: int = 32
    """Sequences that hold banks at the same time."""
    max_step_tokens: int = 512
    """Tokens in one step, all spans together."""
    step_s: float = 0.025
    """How long a step may take while a stream waits for it. Prompts get at least as long as the
    streams take; and where more wait for their first token than have one, in proportion, though no
    more than `_MAJORITY` steps. Else those that arrive together would wait, on a slow machine,
    until the ones before them have said all."""
    idle_step_s: float = 0.250
    """How long a step may take while no stream waits; cancellations and arrivals do. Once a prompt
    is complete in it, the prompts behind that one get no more than `step_s`."""

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise ValueError(f"max_running must be at least 1, not {self.max_running}")
        if self.max_step_tokens < self.max_running + CHUNK:
            raise ValueError(
                f"max_step_tokens must be at least {self.max_running + CHUNK} for "
                f"{self.max_running} running sequences, not {self.max_step_tokens}"
            )
        if not 0 < self.step_s <= self.idle_step_s:
            raise ValueError(
                f"step_s and idle_step_s must ascend from above 0, not {self.step_s}, "
                f"{self.idle_step_s}"
            )


class PlannedSpan(NamedTuple):
    """One sequence's part: tokens `[position, position + num_tokens)`, logits for the last ones."""

    sequence: Sequence
    position: int
    num_tokens: int
    num_logits: int


class PlannedLoad(NamedTuple):
    """A sequence's next banks, which are on disk."""

    sequence: Sequence
    names: tuple[bytes, ...]


FindParked: TypeAlias = Callable[[Sequence], tuple[bytes, ...]]
"""The names of a sequence's next banks, where reading them is quicker than computing them."""


class Plan(NamedTuple):
    """What to do in one step, and what was decided on the way."""

    spans: tuple[PlannedSpan, ...]
    preempted: tuple[Sequence, ...]
    """Lost their banks and wait again; they go on later, as if nothing had happened."""
    admitted: tuple[Sequence, ...]
    moves: tuple[BankMove, ...] = ()
    """To be made in this order, before anything is computed or loaded."""
    loads: tuple[PlannedLoad, ...] = ()
    """Of sequences just admitted: each has a place for these banks, and waits for them."""

    @property
    def num_tokens(self) -> int:
        return sum(span.num_tokens for span in self.spans)


@dataclass(slots=True)
class _Draft:
    """A plan being made."""

    spans: list[PlannedSpan] = field(default_factory=list)
    behind: list[Sequence] = field(default_factory=list)
    """Running sequences that have more to compute than one token and its drafts."""
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    moves: list[BankMove] = field(default_factory=list)
    loads: list[PlannedLoad] = field(default_factory=list)
    num_drafts: int = 0
    coming: set[BankKey | None] = field(default_factory=set)
    """Banks that this step computes, or that are being read; nobody else should."""


class Scheduler:
    """Decides; never computes. `plan`, run the model, `complete`, and again."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCache,
        cost: CostModel,
        find_parked: FindParked = lambda sequence: (),
    ) -> None:
        self.config = config
        self.kv = kv
        self.cost = cost
        self._find_parked = find_parked
        self._running: dict[int, Sequence] = {}
        self._line = WaitingLine()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    @property
    def num_queued_tokens(self) -> int:
        """Tokens to compute before all sequences here have caught up, if nothing were cached."""
        running = self._running.values()
        return self._line.num_tokens + sum(s.num_uncomputed_tokens for s in running)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._line)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait for its turn. Raises `ContextLengthExceeded` when it could not
        finish even alone, `InvalidRequest` when it is to grow from no tokens."""
        self._refuse_impossible(sequence)
        self._line.join(sequence)
        self._wait(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> BankCopy | None:
        """Add a new sequence that starts with all that `parent` has computed. The copy returned, if
        any, must be made before the next step. Raises as `add` does."""
        self._refuse_impossible(child)
        if parent.state is not _RUNNING or len(self._running) >= self.config.max_running:
            self.add(child)
            return None
        copy = self.kv.fork(parent, child)
        self._line.join(child)
        self._note_cached(child, child.num_computed_tokens)
        self._run(child)
        return copy

    def cancel(
        self, sequence: Sequence, turn: TurnEnd | None = None, *, has_failed: bool = False
    ) -> None:
        """End a sequence wherever it is; its banks are free or cached at once. Ending it twice is
        fine. See `finish` for the rest."""
        if sequence.state is not State.FINISHED:
            self.finish(sequence, turn, has_failed=has_failed)

    def finish(
        self, sequence: Sequence, turn: TurnEnd | None = None, *, has_failed: bool = False
    ) -> None:
        """End a sequence. Where it was a turn of a conversation, that keeps its full banks. What
        one that has failed wrote since its last full bank is not trusted."""
        sequence.num_loading_banks = 0
        if sequence.state is _RUNNING:
            if turn is not None:
                if turn.is_good:
                    self.kv.commit(sequence)  # banks that were moved, and nothing computed since
                self.kv.end_turn(sequence, turn)
            if not has_failed:
                self.kv.leave_tail(sequence, turn.conversation if turn is not None else None)
            self.kv.release(sequence)
            del self._running[sequence.id]
        else:
            self._line.remove(sequence)
        sequence.become(State.FINISHED)
        self._line.leave(sequence)

    def plan(self) -> Plan:
        """Decide the next step. Streams go on; what the budget leaves lets the others catch up.

        A plan that is not completed has no effect but its preemptions and admissions.
        """
        draft = _Draft()
        self._go_on(draft)
        if draft.behind or self._may_admit(draft):
            self._catch_up(draft)
        return Plan(
            tuple(draft.spans),
            tuple(draft.preempted),
            tuple(draft.admitted),
            tuple(draft.moves),
            tuple(draft.loads),
        )

    def complete(self, plan: Plan) -> None:
        """Note that the model has computed `plan`, whose sequences have got no token since. Those
        ended in the meantime are left alone."""
        bank_size = self.kv.bank_size
        for sequence, position, num_tokens, _ in plan.spans:
            if sequence.state is _RUNNING:
                end = position + num_tokens
                sequence.num_computed_tokens = end
                if end >= (sequence.num_committed_banks + 1) * bank_size:
                    self.kv.commit(sequence)

    def loaded_bank(self, sequence: Sequence) -> None:
        """Note that the next of the banks that a sequence waits for is in its place."""
        sequence.num_loading_banks -= 1
        sequence.num_computed_tokens += self.kv.bank_size
        self.kv.commit(sequence)
        if not sequence.num_preemptions:
            sequence.num_loaded_tokens += self.kv.bank_size
        self._note_cached(sequence, self.kv.bank_size)

    def end_load(self, sequence: Sequence) -> None:
        """Let a sequence compute the rest of what it waits for."""
        sequence.num_loading_banks = 0

    def _go_on(self, draft: _Draft) -> None:
        """Give every stream its token, and every running sequence banks for all its tokens."""
        bank_size = self.kv.bank_size
        served = self._line.served
        for sequence in tuple(self._running.values()):
            if sequence.state is not _RUNNING:
                continue  # preempted a moment ago
            if sequence.num_loading_banks:
                draft.coming.add(self.kv.next_key(sequence))
                continue
            if len(sequence.tokens) > len(sequence.banks) * bank_size and not self._make_room(
                sequence, draft
            ):
                continue
            position = sequence.num_computed_tokens
            n = len(sequence.tokens) - position
            if n > 1 + sequence.num_drafts or (n and not sequence.grows):
                draft.behind.append(sequence)
            elif n:
                if n > 1:
                    n = self._trim(sequence, draft)
                draft.spans.append(PlannedSpan(sequence, position, n, n))
                served[sequence.tenant] += n
        if draft.preempted:
            draft.spans = [span for span in draft.spans if span.sequence.state is _RUNNING]
            draft.behind = [sequence for sequence in draft.behind if sequence.state is _RUNNING]

    def _trim(self, sequence: Sequence, draft: _Draft) -> int:
        """Drop drafts that would leave no tokens for others; returns the tokens left to compute."""
        draft.num_drafts += sequence.num_drafts
        if draft.num_drafts > self.config.max_step_tokens - self.config.max_running - CHUNK:
            draft.num_drafts -= sequence.num_drafts
            sequence.settle(0)
        return sequence.num_uncomputed_tokens

    def _catch_up(self, draft: _Draft) -> None:
        """Spend what the streams left of the budget, on one sequence after another."""
        config = self.config
        left_s = self._left_s(draft)
        is_idle = not draft.spans
        left = config.max_step_tokens - sum(span.num_tokens for span in draft.spans)
        least = LEAST_CHUNK  # However slow the machine, a step gets someone on.
        for sequence in self._in_turn(draft):
            position = sequence.num_computed_tokens
            wanted = sequence.num_uncomputed_tokens
            n = min(left, max(least, self.cost.num_tokens_within(left_s, position)))
            n = wanted if n >= wanted else n - n % (CHUNK if n >= CHUNK else LEAST_CHUNK)
            if n:
                self._take(draft, sequence, n)
            left_s -= self.cost.price(n, position)
            if is_idle and n == wanted and sequence.grows:
                # Its first token now waits for whoever joins, as a stream's next one would.
                left_s = min(left_s, config.step_s)
            left -= n
            least = 0
            if n < wanted or left < CHUNK or self.cost.num_tokens_within(left_s, 0) < CHUNK:
                break

    def _left_s(self, draft: _Draft) -> float:
        """Seconds for prompts in this step."""
        streams_s = self.cost.estimate(draft.spans)
        num_streams = len(draft.spans)
        if not num_streams:
            return self.config.idle_step_s - streams_s
        num_waiting = len(draft.behind) + len(self._line)
        majority_s = min(_MAJORITY * self.config.step_s, streams_s * num_waiting / num_streams)
        return max(self.config.step_s - streams_s, streams_s, majority_s)

    def _in_turn(self, draft: _Draft) -> Iterator[Sequence]:
        """Whoever is to catch up next, running or admitted now; see `engine/waiting_line.py`."""
        may_admit = True
        while True:
            first = self._line.first() if may_admit and self._may_admit(draft) else None
            nearest = min(draft.behind, key=self._turn, default=None)
            if first is not None and (nearest is None or first[0] < self._turn(nearest)):
                # When it must wait, those after it wait as well, or it would wait for ever.
                may_admit = self._admit(first[1], draft)
                if may_admit and not first[1].num_loading_banks:
                    yield first[1]
            elif nearest is not None:
                draft.behind.remove(nearest)
                self._attach(nearest)
                if self.kv.next_key(nearest) not in draft.coming:
                    yield nearest
            else:
                return

    def _take(self, draft: _Draft, sequence: Sequence, num_tokens: int) -> None:
        position = sequence.num_computed_tokens
        num_logits = max(0, position + num_tokens - sequence.num_silent_tokens)
        draft.spans.append(PlannedSpan(sequence, position, num_tokens, num_logits))
        self._line.serve(sequence.tenant, num_tokens)
        key = self.kv.next_key(sequence)
        if key is not None:
            draft.coming.add(key)

    def _may_admit(self, draft: _Draft) -> bool:
        # Who has just yielded its banks does not come back in the same step.
        has_place = len(self._running) < self.config.max_running
        return has_place and len(self._line) > 0 and not draft.preempted

    def _admit(self, sequence: Sequence, draft: _Draft) -> bool:
        """Let a waiting sequence run if there are banks for all its tokens, and one to spare for
        each that runs. Not yet if someone computes its next bank in this very step."""
        if self.kv.next_key(sequence) in draft.coming:
            return False
        while not self.kv.fits(sequence, num_spare=len(self._running)):
            # Pins keep banks from the many, never from the only one.
            if self._running or not self.kv.pins.drop_first():
                return False
        self._line.remove(sequence)
        draft.moves += self.kv.shift(sequence)
        self._note_cached(sequence, sequence.num_computed_tokens)
        self._attach(sequence)
        self.kv.reserve(sequence, sequence.num_uncomputed_tokens)
        self._run(sequence)
        draft.admitted.append(sequence)
        self._fetch(sequence, draft)
        if not sequence.num_loading_banks:
            self._borrow(sequence, draft)
        return True

    def _borrow(self, sequence: Sequence, draft: _Draft) -> None:
        moves = self.kv.borrow(sequence)
        self._note_cached(sequence, sum(move.num_positions for move in moves))
        draft.moves += moves

    def _fetch(self, sequence: Sequence, draft: _Draft) -> None:
        """Have what is on disk read, before anything is computed."""
        names = self._find_parked(sequence) if sequence.realm == sequence.tenant else ()
        sequence.num_loading_banks = len(names)
        if names:
            draft.loads.append(PlannedLoad(sequence, names))
            draft.coming.add(self.kv.next_key(sequence))

    def _attach(self, sequence: Sequence) -> None:
        self._note_cached(sequence, self.kv.match(sequence))

    @staticmethod
    def _note_cached(sequence: Sequence, num_tokens: int) -> None:
        # What a preempted sequence finds again it may have computed itself.
        if not sequence.num_preemptions:
            sequence.num_cached_tokens = min(
                sequence.num_cached_tokens + num_tokens, sequence.num_prompt_tokens
            )
            if sequence.realm != sequence.tenant:
                sequence.num_shifted_tokens = sequence.num_cached_tokens

    def _make_room(self, sequence: Sequence, draft: _Draft) -> bool:
        """Find banks for all tokens of a running sequence, whoever must yield for them; False when
        it is the one to yield."""
        if not self._reserve_all(sequence):
            # Guesses are worth nobody's banks.
            sequence.settle(0)
        while not self._reserve_all(sequence):
            victim = self._victim()
            if victim is not None:
                self._preempt(victim, draft)
            elif not self.kv.pins.drop_first():
                raise RuntimeError(
                    f"{sequence!r} alone does not fit into {self.kv.num_banks} banks"
                )
            if victim is sequence:
                return False
        return True

    def _reserve_all(self, sequence: Sequence) -> bool:
        return self.kv.reserve(sequence, sequence.num_uncomputed_tokens)

    def _victim(self) -> Sequence | None:
        """The youngest of the tenant that holds most, but never the eldest of all."""
        eldest = min(self._running.values(), key=lambda s: s.arrival)
        held: Counter[str] = Counter()
        for sequence in self._running.values():
            held[sequence.tenant] += len(sequence.banks)
        others = (s for s in self._running.values() if s is not eldest)
        return max(others, key=lambda s: (held[s.tenant], s.arrival), default=None)

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
        victim.settle(0)
        victim.num_loading_banks = 0
        self.kv.release(victim)
        del self._running[victim.id]
        victim.become(State.WAITING)
        victim.num_preemptions += 1
        draft.preempted.append(victim)
        self._wait(victim)

    def _run(self, sequence: Sequence) -> None:
        sequence.become(_RUNNING)
        self._running[sequence.id] = sequence

    def _wait(self, sequence: Sequence) -> None:
        num_cached = self.kv.count_cached_tokens(sequence)
        self._line.push(sequence, sequence.num_uncomputed_tokens - num_cached)

    def _turn(self, sequence: Sequence) -> Turn:
        return self._line.turn(sequence, sequence.num_uncomputed_tokens)

    def _refuse_impossible(self, sequence: Sequence) -> None:
        if sequence.grows and not sequence.tokens:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="messages")
        num_tokens = max(len(sequence.tokens), sequence.max_num_tokens)
        if num_tokens > self.kv.capacity:
            raise ContextLengthExceeded(
                f"{num_tokens} tokens ({sequence.num_prompt_tokens} of them prompt) can never fit "
                f"into the KV cache of {self.kv.capacity}; shorten the prompt, lower max_tokens, "
                "or give the engine a larger cache",
                param="max_tokens",
            )
