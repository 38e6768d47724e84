"""Who has which bank: reuse, grow, share, evict, pin.

In: sequences. Out: their bank tables. Thread: the engine thread only. Next: `model/native.py`.

Every bank is in exactly one of three places, after every call:

    free       nobody's, content meaningless
    cached     indexed, in no sequence's table; evicted when needed, unless pinned
    held       in a sequence's table: shared when indexed, else that sequence's alone

A sequence's table is a path in the prefix index, then its own banks:

    banks      | indexed, shared ......... | private, filling | private, reserved |
               |<- num_committed_banks --->|
    computed   |==================================>|

Only private banks are ever written. The cache moves no data: what must be copied is returned.

A bank that a sequence leaves before it is full stays indexed, too, as a tail: nobody attaches it,
but who goes on from there copies it, and so computes nothing again.
"""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple, TypeAlias

from headrace.engine.pins import Pins, TurnEnd
from headrace.engine.prefix_index import SEVERAL, Near, Node, PrefixIndex, Realm
from headrace.engine.sequence import Sequence
from headrace.engine.shifting import BankMove, Kept, moves, what_is_kept

BankKey: TypeAlias = tuple[Realm, Node | None, bytes]
"""Realm, parent and token ids: the address that a bank not yet computed will have."""

LEAST_TAIL: Final = 4
"""Fewer tokens are computed rather than kept and copied: most prompts of a chat template begin with
the same two or three."""


class BankCopy(NamedTuple):
    """Work for the model before the next step: copy bank `source` to bank `target`."""

    source: int
    target: int


class KVCache:
    """The pool's book-keeping. Every operation costs O(banks it touches)."""

    def __init__(
        self, num_banks: int, bank_size: int, identity: str, *, max_pinned_share: float = 0.5
    ) -> None:
        """`bank_size` in positions; `identity` names everything a bank's content depends on beside
        tokens; pins never take more than `max_pinned_share` of the pool."""
        if num_banks < 1 or bank_size < 1:
            raise ValueError(f"a pool of {num_banks} banks of {bank_size} positions holds nothing")
        self.num_banks = num_banks
        self.bank_size = bank_size
        self.index = PrefixIndex(identity)
        self.pins = Pins(self.index, int(num_banks * max_pinned_share))
        self._free = list(range(num_banks - 1, -1, -1))
        self._num_ever_used = 0
        self._num_cached = 0
        self.num_evicted = 0
        """Banks that were cached and had to make room for others."""

    @property
    def capacity(self) -> int:
        """Positions in the whole pool: the longest sequence that can ever run."""
        return self.num_banks * self.bank_size

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_ever_used(self) -> int:
        """Banks from this number on have never been written."""
        return self._num_ever_used

    @property
    def num_cached(self) -> int:
        return self._num_cached

    @property
    def num_held(self) -> int:
        return self.num_banks - len(self._free) - self._num_cached

    @property
    def num_available(self) -> int:
        """Banks that a sequence could get now."""
        return len(self._free) + self.index.num_idle

    def num_banks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.bank_size)

    def count_cached_tokens(self, sequence: Sequence) -> int:
        """How many tokens `match` would attach now."""
        return len(self._find(sequence)) * self.bank_size

    def fits(self, sequence: Sequence, *, num_spare: int = 0) -> bool:
        """Whether a waiting sequence could get banks for all its tokens and leave `num_spare`
        available. Then `match` and `reserve` succeed."""
        path = self._find(sequence)
        num_idle = sum(self.index.is_idle(node) for node in path)
        num_new = self.num_banks_for(len(sequence.tokens)) - len(path)
        return num_new + num_idle + num_spare <= self.num_available

    def next_key(self, sequence: Sequence) -> BankKey | None:
        """The address of the first bank that this sequence must compute, if another sequence could
        spare it that work. Two sequences with the same next key need the same bank."""
        path = self._find(sequence)
        start = (sequence.num_committed_banks + len(path)) * self.bank_size
        end = start + self.bank_size
        if end > sequence.num_silent_tokens:
            return None
        parent = path[-1] if path else sequence.prefix
        return sequence.realm, parent, sequence.tokens[start:end].tobytes()

    def match(self, sequence: Sequence) -> int:
        """Attach the longest cached continuation of what is computed; returns its tokens. Never a
        token whose logits are needed: it must be computed for them. Reserved banks that a cached
        one replaces become free."""
        path = self._find(sequence)
        for node in path:
            self._hold(node)
            self._enter(sequence, node)
        sequence.num_computed_tokens += len(path) * self.bank_size
        return len(path) * self.bank_size

    def borrow(self, sequence: Sequence) -> list[BankMove]:
        """Where some bank begins with the tokens of the sequence's next one, count those as
        computed; returns the copy to make before the next step. For a sequence that has reserved
        its next bank and written nothing to it."""
        i = sequence.num_committed_banks
        start = i * self.bank_size
        if sequence.num_computed_tokens != start or i == len(sequence.banks):
            return []
        near = self._nearest(sequence, min(start + self.bank_size, sequence.num_silent_tokens))
        if near is None:
            return []
        node, num_tokens = near
        self._hold(node)  # and let go: it was used just now
        self._let_go(node)
        sequence.num_computed_tokens += num_tokens
        return [BankMove(node.bank, 0, sequence.banks[i], 0, num_tokens, 0)]

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow the table for the next `num_tokens` tokens, evicting as needed: all or nothing."""
        num_wanted = self.num_banks_for(sequence.num_computed_tokens + num_tokens)
        num_missing = num_wanted - len(sequence.banks)
        if num_missing > self.num_available:
            return False
        for _ in range(num_missing):
            sequence.banks.append(self._take())
        return True

    def commit(self, sequence: Sequence) -> None:
        """Index the banks that computed tokens have filled since the last time.

        Where another sequence was faster with the same bank, its bank replaces this one's, which
        becomes free: equal tokens give equal bits, so nobody can tell them apart.
        """
        num_settled = min(sequence.num_computed_tokens, sequence.num_confirmed_tokens)
        for i in range(sequence.num_committed_banks, num_settled // self.bank_size):
            start = i * self.bank_size
            tokens = sequence.tokens[start : start + self.bank_size].tobytes()
            node = self.index.find(sequence.prefix, sequence.realm, tokens)
            if node is None:
                self._drop_tail(self._nearest(sequence, start + self.bank_size))
                node = self.index.insert(sequence.prefix, sequence.realm, tokens, sequence.banks[i])
            else:
                self._hold(node)
            self._enter(sequence, node)

    def leave_tail(self, sequence: Sequence, conversation: str | None) -> None:
        """Index the bank that a sequence about to be released has begun and not filled, in place of
        the tail that it goes on from. `conversation` is the one whose turn this was, if any."""
        i = sequence.num_committed_banks
        start = i * self.bank_size
        end = min(sequence.num_computed_tokens, sequence.num_confirmed_tokens)
        if not LEAST_TAIL <= end - start < self.bank_size:
            return
        near = self._nearest(sequence, end)
        if near is not None and near.num_tokens == end - start:
            if near.is_whole and conversation is not None:
                _mark(near.node, conversation)
            return
        self._drop_tail(near)
        tokens = sequence.tokens[start:end].tobytes()
        bank = sequence.banks.pop(i)
        tail = self.index.insert(sequence.prefix, sequence.realm, tokens, bank)
        tail.conversation = conversation
        self._let_go(tail)

    def release(self, sequence: Sequence) -> None:
        """Take all banks from the sequence. Indexed ones stay cached, the last used longest."""
        if sequence.prefix is not None:
            for node in sequence.prefix.path():
                self._let_go(node)
        self._free.extend(sequence.banks[sequence.num_committed_banks :])
        del sequence.banks[:]
        sequence.prefix = None
        sequence.num_committed_banks = 0
        sequence.num_computed_tokens = 0
        sequence.realm = sequence.tenant

    def shift(self, sequence: Sequence) -> list[BankMove]:
        """Let a sequence that may be approximate, and has no banks, go on from what its
        conversation kept, though turns of that are gone: in the conversation's own realm, from what
        was moved there before, or by the moves returned, which then come before its next step.
        Where that saves nothing, or there are no banks for it, all stays exact."""
        if sequence.shifts_in is None or sequence.banks:
            return []
        owner = (sequence.tenant, sequence.shifts_in)
        num_exact = self.count_cached_tokens(sequence)
        sequence.realm = owner
        num_near = self.count_cached_tokens(sequence)
        leaf = self.pins.leaf_of(owner)
        kept = None if leaf is None else self._kept(sequence, leaf)
        num_far = 0 if kept is None else min(kept.end, sequence.num_silent_tokens)
        if leaf is not None and kept is not None and num_far >= num_near + self.bank_size:
            if num_far >= num_exact + self.bank_size and self._make_place(sequence, leaf):
                sources = [node.bank for node in leaf.path()][::-1]
                sequence.num_computed_tokens = num_far
                return moves(kept, num_far, sources, sequence.banks, self.bank_size)
        elif num_near > num_exact and self.fits(sequence):
            return []
        sequence.realm = sequence.tenant
        return []

    def _kept(self, sequence: Sequence, leaf: Node) -> Kept | None:
        before = array("i", b"".join(node.tokens for node in list(leaf.path())[::-1]))
        return what_is_kept(before, sequence.tokens, self.bank_size)

    def _make_place(self, sequence: Sequence, leaf: Node) -> bool:
        """Reserve banks for all tokens, none of them among those up to `leaf`."""
        for node in leaf.path():
            self._hold(node)
        has_place = self.reserve(sequence, sequence.num_uncomputed_tokens)
        for node in leaf.path():
            self._let_go(node)
        return has_place

    def fork(self, parent: Sequence, child: Sequence) -> BankCopy | None:
        """Give `child`, which has no banks, all that the parent has computed. Raises `ValueError`
        unless the child's tokens start with the parent's computed ones.

        Full banks are shared. Of a partial one the copy to make is returned; when no bank is left
        for it, the child computes those tokens itself.
        """
        self._check_fork(parent, child)
        num_full = parent.num_committed_banks
        if parent.prefix is not None:
            for node in parent.prefix.path():
                self._hold(node)
        child.banks = parent.banks[:num_full]
        child.num_committed_banks = num_full
        child.prefix = parent.prefix
        child.num_computed_tokens = num_full * self.bank_size
        num_partial = parent.num_computed_tokens - child.num_computed_tokens
        if not num_partial or not self.reserve(child, num_partial):
            return None
        child.num_computed_tokens += num_partial
        return BankCopy(parent.banks[num_full], child.banks[num_full])

    def end_turn(self, sequence: Sequence, turn: TurnEnd) -> bool:
        """Keep the sequence's indexed banks for the conversation, in place of what it kept before.
        A turn that broke off changes nothing, unless nothing was kept: then there is no good turn
        to go back to. Whether the conversation keeps banks now."""
        owner = (sequence.tenant, turn.conversation)
        _mark(sequence.prefix, turn.conversation)
        if turn.is_good or owner not in self.pins:
            return self.pins.renew(owner, sequence.prefix, turn.at)
        return True

    def forget(self, tenant: str, conversation: str) -> None:
        """Keep nothing for the conversation any more, and free all that its turns alone have left,
        pinned or not, and that nobody holds. Unknown ones are fine."""
        owner = (tenant, conversation)
        self.pins.drop(owner)
        own = [n for n in self.index.of_realm(tenant) if n.conversation == conversation]
        for node in reversed([*self.index.of_realm(owner), *own]):
            if not node.children and self.index.is_idle(node):
                self._free.append(self.index.remove(node))
                self._num_cached -= 1

    def bank_key(self, node: Node) -> bytes:
        """A stable name of the bank's content, the same in every process; see
        `PrefixIndex.digest`."""
        return self.index.digest(node)

    def _check_fork(self, parent: Sequence, child: Sequence) -> None:
        if parent.tenant != child.tenant:
            raise ValueError(f"tenants never share banks: {parent!r}, {child!r}")
        if parent.num_drafts or child.num_drafts:
            raise ValueError(f"settle drafts before a fork: {parent!r}, {child!r}")
        if child.banks:
            raise ValueError(f"the child of a fork must hold no banks: {child!r}")
        num_computed = parent.num_computed_tokens
        if child.tokens[:num_computed] != parent.tokens[:num_computed]:
            raise ValueError(f"{child!r} does not start with what {parent!r} has computed")

    def _find(self, sequence: Sequence) -> list[Node]:
        """The cached banks that continue what the sequence has committed and computed."""
        path: list[Node] = []
        size = self.bank_size
        start = sequence.num_committed_banks * size
        # In the middle of a bank there is nothing to attach: it is being written.
        if sequence.num_computed_tokens != start:
            return path
        node = sequence.prefix
        end = sequence.num_silent_tokens
        while start + size <= end:
            tokens = sequence.tokens[start : start + size].tobytes()
            node = self.index.find(node, sequence.realm, tokens)
            if node is None:
                break
            path.append(node)
            start += size
        return path

    def _nearest(self, sequence: Sequence, end: int) -> Near | None:
        """The bank that begins with most of the sequence's tokens from its next bank up to `end`;
        None where that would not be worth a copy."""
        start = sequence.num_committed_banks * self.bank_size
        tokens = sequence.tokens[start:end].tobytes()
        return self.index.nearest(sequence.prefix, sequence.realm, tokens, LEAST_TAIL)

    def _drop_tail(self, near: Near | None) -> None:
        """Forget a tail that is the beginning of a bank about to be indexed."""
        if near is not None and near.is_whole:
            self._free.append(self.index.remove(near.node))
            self._num_cached -= 1

    def _hold(self, node: Node) -> None:
        self._num_cached -= not node.num_holders
        self.index.hold(node)

    def _let_go(self, node: Node) -> None:
        self.index.let_go(node)
        self._num_cached += not node.num_holders

    def _enter(self, sequence: Sequence, node: Node) -> None:
        """Make an indexed bank the sequence's next committed one."""
        i = sequence.num_committed_banks
        if i == len(sequence.banks):
            sequence.banks.append(node.bank)
        elif sequence.banks[i] != node.bank:
            self._free.append(sequence.banks[i])
            sequence.banks[i] = node.bank
        sequence.prefix = node
        sequence.num_committed_banks = i + 1

    def _take(self) -> int:
        if self._free:
            bank = self._free.pop()
            if bank >= self._num_ever_used:
                self._num_ever_used = bank + 1
            return bank
        self._num_cached -= 1
        self.num_evicted += 1
        return self.index.evict()


def _mark(leaf: Node | None, conversation: str) -> None:
    """Note whose banks these are, so that they can be forgotten with it."""
    for node in leaf.path() if leaf is not None else ():
        if node.conversation in (conversation, SEVERAL):
            break  # and so are all before it
        node.conversation = conversation if node.conversation is None else SEVERAL
