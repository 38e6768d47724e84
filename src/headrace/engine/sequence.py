"""Tokens being grown for one choice, and how far the model has got with them.

In: a prompt's token ids, then one sampled token after another. Out: what is left to compute.
Thread: the engine thread only. Next: `engine/scheduler.py`.

One rule, no modes: a sequence has tokens and computed tokens, and each step lets it catch up.

    tokens     |  prompt ............ | generated ... | drafts |
    computed   |==========================>        |
                                       num_uncomputed_tokens
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from headrace.engine.prefix_index import Node, Realm


class State(Enum):
    """Where a sequence is. `WAITING` holds no banks; `FINISHED` never holds any again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    # Admitted; or cancelled in the queue.
    State.WAITING: frozenset({State.RUNNING, State.FINISHED}),
    # Preempted, to be computed again later; or ended, for whatever reason.
    State.RUNNING: frozenset({State.WAITING, State.FINISHED}),
    State.FINISHED: frozenset(),
}
"""All there are. `Sequence.become` allows nothing else."""


class Sequence:
    """One choice's tokens. Owned by the engine thread; the KV cache and the scheduler keep their
    own notes in the slots marked so."""

    __slots__ = (
        "arrival",
        "banks",
        "grows",
        "id",
        "max_num_tokens",
        "num_cached_tokens",
        "num_committed_banks",
        "num_computed_tokens",
        "num_drafts",
        "num_loaded_tokens",
        "num_loading_banks",
        "num_preemptions",
        "num_prompt_tokens",
        "num_shifted_tokens",
        "prefix",
        "rank_base",
        "realm",
        "shifts_in",
        "state",
        "tenant",
        "tokens",
    )

    def __init__(
        self, sequence_id: int, tenant: str, prompt: Iterable[int], *, max_num_tokens: int
    ) -> None:
        self.id = sequence_id
        self.tenant = tenant
        self.tokens: array[int] = array("i", prompt)
        """Prompt, then generated tokens, then drafts. 32-bit, contiguous."""
        self.num_prompt_tokens = len(self.tokens)
        self.max_num_tokens = max_num_tokens
        """Prompt and generated tokens together never exceed this."""
        self.grows = max_num_tokens > self.num_prompt_tokens
        """Whether a token is to follow the prompt. Else its banks are all that is wanted."""
        self.num_computed_tokens = 0
        self.num_drafts = 0
        """How many of the last tokens are guesses that the model has not confirmed."""
        self.state = State.WAITING

        self.shifts_in: str | None = None
        """The conversation whose banks it may use at other positions than they were made for."""

        # The KV cache's notes.
        self.realm: Realm = tenant
        """Whose banks it uses, and for whom it leaves its own: the tenant's, unless it is
        approximate."""
        self.banks: array[int] = array("i")
        """Entry `i` holds positions `[i * bank_size, (i + 1) * bank_size)`."""
        self.num_committed_banks = 0
        """So many of its first banks are indexed; the others are this sequence's alone."""
        self.prefix: Node | None = None
        """The index's node of the last committed bank."""

        # The scheduler's notes.
        self.num_cached_tokens = 0
        """Prompt tokens that came from the cache and were not computed for this sequence."""
        self.num_loaded_tokens = 0
        """Those of them that came from disk."""
        self.num_shifted_tokens = 0
        """Those of them that were moved from other positions, in this turn or an earlier one."""
        self.num_loading_banks = 0
        """Its next banks that are being read from disk; until then nothing of it is computed."""
        self.num_preemptions = 0
        self.arrival = 0
        """Order of arrival; lower is older."""
        self.rank_base = 0
        """Tokens that the tenant had been served when this sequence arrived."""

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id}, {self.tenant!r}, {self.state.value}, "
            f"{self.num_computed_tokens}/{len(self.tokens)} tokens, {len(self.banks)} banks)"
        )

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_confirmed_tokens(self) -> int:
        """Tokens without the drafts."""
        return len(self.tokens) - self.num_drafts

    @property
    def num_silent_tokens(self) -> int:
        """Confirmed tokens whose logits nobody needs: all but the last one, or all where none is to
        follow."""
        return len(self.tokens) - self.num_drafts - self.grows

    @property
    def has_caught_up(self) -> bool:
        return self.num_computed_tokens == len(self.tokens)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.tokens) - self.num_drafts - self.num_prompt_tokens

    @property
    def has_first_token(self) -> bool:
        return self.num_generated_tokens > 0

    def append(self, token: int) -> None:
        """Grow by one sampled token. Drafts must have been settled before."""
        if self.num_drafts:
            raise ValueError(f"sequence {self.id} has unsettled drafts; call settle() first")
        if len(self.tokens) >= self.max_num_tokens:
            raise ValueError(
                f"sequence {self.id} already has its {self.max_num_tokens} tokens; "
                "finish it instead of appending"
            )
        self.tokens.append(token)

    def draft(self, tokens: Iterable[int]) -> None:
        """Guess the tokens that follow; the next step computes them too. Guesses past
        `max_num_tokens` are left out."""
        if self.num_drafts:
            raise ValueError(f"sequence {self.id} has unsettled drafts; call settle() first")
        before = len(self.tokens)
        self.tokens.extend(tokens)
        del self.tokens[max(before, self.max_num_tokens) :]
        self.num_drafts = len(self.tokens) - before

    def settle(self, num_accepted: int) -> None:
        """Keep the first `num_accepted` drafts as generated tokens and forget the others."""
        if not 0 <= num_accepted <= self.num_drafts:
            raise ValueError(f"num_accepted is {num_accepted} of {self.num_drafts} drafts")
        del self.tokens[self.num_confirmed_tokens + num_accepted :]
        self.num_drafts = 0
        # What was computed for the forgotten ones is overwritten later; it is in a private bank.
        self.num_computed_tokens = min(self.num_computed_tokens, len(self.tokens))

    def become(self, state: State) -> None:
        """Change state. Raises `ValueError` for a transition that is not in the table."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(
                f"sequence {self.id} is {self.state.value} and cannot become {state.value}"
            )
        self.state = state
