from collections.abc import Iterable

import pytest

from headrace.engine.kv_cache import BankCopy, KVCache
from headrace.engine.pins import LEASE_S, TurnEnd
from headrace.engine.scheduler import Plan, PlannedSpan
from headrace.engine.sequence import Sequence, State
from support.scheduling import BankModel, audit

BANK = 4


class Pool:
    """A cache, a model of its banks, and every sequence that touches them."""

    def __init__(self, num_banks: int = 8, bank_size: int = BANK, **options: float) -> None:
        self.kv = KVCache(num_banks, bank_size, "model", **options)
        self.model = BankModel(bank_size)
        self.sequences: list[Sequence] = []

    def sequence(self, tokens: Iterable[int], tenant: str = "alice") -> Sequence:
        s = Sequence(len(self.sequences), tenant, tokens, max_num_tokens=100)
        s.become(State.RUNNING)
        self.sequences.append(s)
        return s

    def compute(self, s: Sequence, num_tokens: int | None = None) -> None:
        n = s.num_uncomputed_tokens if num_tokens is None else num_tokens
        assert self.kv.reserve(s, n)
        span = PlannedSpan(s, s.num_computed_tokens, n, 0)
        self.model.step(Plan((span,), (), ()), self.kv)
        s.num_computed_tokens += n
        self.kv.commit(s)
        self.audit()

    def run(self, tokens: Iterable[int], tenant: str = "alice") -> Sequence:
        """Match, then compute the rest."""
        s = self.sequence(tokens, tenant)
        self.kv.match(s)
        self.compute(s)
        return s

    def release(self, s: Sequence) -> None:
        self.kv.release(s)
        s.become(State.FINISHED)
        self.audit()

    def audit(self) -> None:
        audit(self.kv, self.sequences)


def counts(kv: KVCache) -> tuple[int, int, int]:
    return kv.num_free, kv.num_cached, kv.num_held


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_pool_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        KVCache(*shape, "model")


def test_full_banks_stay_cached_after_release_and_partial_ones_become_free() -> None:
    pool = Pool()
    s = pool.run(range(10))
    assert counts(pool.kv) == (5, 0, 3)
    pool.release(s)
    assert counts(pool.kv) == (6, 2, 0)


def test_a_second_sequence_attaches_what_the_first_computed() -> None:
    pool = Pool()
    first = pool.run(range(10))
    second = pool.sequence([*range(8), 99, 98])
    assert pool.kv.count_cached_tokens(second) == 8
    assert pool.kv.match(second) == 8
    assert list(second.banks) == list(first.banks[:2])
    pool.model.check(second, 8)
    pool.compute(second)
    assert counts(pool.kv) == (4, 0, 4)


def test_the_last_token_is_always_computed() -> None:
    pool = Pool()
    pool.run(range(8))
    same = pool.sequence(range(8))
    assert pool.kv.match(same) == 4
    assert same.num_uncomputed_tokens == 4


def test_a_shorter_or_other_beginning_matches_only_what_is_equal() -> None:
    pool = Pool()
    pool.run(range(12))
    assert pool.kv.match(pool.sequence([0, 1, 2])) == 0
    assert pool.kv.match(pool.sequence([0, 1, 2, 9, 4, 5, 6, 7, 8])) == 0
    assert pool.kv.match(pool.sequence([0, 1, 2, 3, 9, 5, 6, 7, 8])) == 4
    pool.audit()


def test_tenants_never_share() -> None:
    pool = Pool()
    alice = pool.run(range(9), "alice")
    bob = pool.sequence(range(9), "bob")
    assert pool.kv.match(bob) == 0
    pool.compute(bob)
    assert not set(alice.banks) & set(bob.banks)


def test_drafts_are_never_indexed_or_matched() -> None:
    pool = Pool()
    s = pool.run([0, 1, 2])
    s.draft([3, 4, 5])
    pool.compute(s)
    assert s.num_committed_banks == 0
    s.settle(0)
    s.append(9)
    pool.compute(s)
    assert s.num_committed_banks == 1
    pool.model.check(s, 4)
    other = pool.sequence([0, 1, 2])
    other.draft([9, 9])
    assert pool.kv.match(other) == 0


def test_reserve_is_all_or_nothing_and_evicts_the_oldest_first() -> None:
    pool = Pool(num_banks=4)
    old = pool.run([1] * 4)
    new = pool.run([2] * 4)
    pool.release(old)
    pool.release(new)
    s = pool.sequence([3] * 40)
    assert not pool.kv.reserve(s, 17)
    assert counts(pool.kv) == (2, 2, 0)
    assert pool.kv.reserve(s, 12)
    assert counts(pool.kv) == (0, 1, 3)
    assert pool.kv.count_cached_tokens(pool.sequence([2] * 5)) == 4
    assert pool.kv.count_cached_tokens(pool.sequence([1] * 5)) == 0
    pool.audit()


def test_use_makes_a_bank_young_again() -> None:
    pool = Pool(num_banks=3)
    pool.release(pool.run([1] * 4))
    pool.release(pool.run([2] * 4))
    pool.release(pool.run([1] * 5))
    assert pool.kv.reserve(pool.sequence([3] * 8), 8)
    assert pool.kv.count_cached_tokens(pool.sequence([1] * 5)) == 4
    assert pool.kv.count_cached_tokens(pool.sequence([2] * 5)) == 0


def test_a_bank_computed_twice_at_once_is_kept_once() -> None:
    pool = Pool()
    first, second = pool.sequence(range(9)), pool.sequence(range(9))
    pool.compute(first, 6)
    pool.compute(second, 3)
    pool.compute(second, 6)
    assert second.banks[0] == first.banks[0]
    assert second.banks[1] != first.banks[1]
    pool.compute(first)
    assert first.banks[1] == second.banks[1]
    assert counts(pool.kv) == (4, 0, 4)
    pool.model.check(first, 9)
    pool.model.check(second, 9)


def test_what_another_computes_meanwhile_is_attached_in_mid_prompt() -> None:
    pool = Pool()
    first, second = pool.sequence(range(13)), pool.sequence(range(13))
    assert pool.kv.reserve(second, 13)
    pool.compute(second, 4)
    pool.kv.match(first)
    pool.compute(first)
    assert pool.kv.match(second) == 8
    pool.audit()
    pool.model.check(second, 12)
    assert counts(pool.kv) == (3, 0, 5)


def test_nothing_is_attached_in_the_middle_of_a_bank() -> None:
    pool = Pool()
    first, second = pool.sequence(range(9)), pool.sequence(range(9))
    pool.compute(second, 2)
    pool.compute(first)
    assert pool.kv.match(second) == 0
    pool.compute(second)


def test_the_next_key_is_shared_by_those_who_need_the_same_bank() -> None:
    pool = Pool()
    kv = pool.kv
    first, second = pool.sequence([*range(8), 20]), pool.sequence([*range(8), 30])
    bob = pool.sequence([*range(8), 20], "bob")
    assert kv.next_key(first) == kv.next_key(second) is not None
    assert kv.next_key(bob) != kv.next_key(first)
    pool.compute(first, 4)
    # The second would attach the first bank, so both need the second one next.
    assert kv.next_key(first) == kv.next_key(second) is not None
    pool.compute(first, 4)
    assert kv.next_key(first) is None


def test_fits_counts_idle_matches_as_used_up() -> None:
    pool = Pool(num_banks=4)
    pool.release(pool.run(range(9)))
    assert counts(pool.kv) == (2, 2, 0)
    s = pool.sequence(range(16))
    assert pool.kv.fits(s)
    assert not pool.kv.fits(s, num_spare=1)
    assert not pool.kv.fits(pool.sequence(range(17)))
    pool.kv.match(s)
    assert pool.kv.reserve(s, s.num_uncomputed_tokens)
    assert counts(pool.kv) == (0, 0, 4)


def test_fork_shares_full_banks_and_names_the_partial_one() -> None:
    pool = Pool()
    parent = pool.run(range(6))
    child = pool.sequence(range(6))
    copy = pool.kv.fork(parent, child)
    assert copy == BankCopy(parent.banks[1], child.banks[1])
    assert child.banks[0] == parent.banks[0]
    assert child.num_computed_tokens == 6
    pool.model.copy(copy)
    pool.audit()
    for s, token in ((parent, 50), (child, 60)):
        s.append(token)
        pool.compute(s)
    pool.model.check(parent, 7)
    pool.model.check(child, 7)
    pool.release(parent)
    pool.model.check(child, 7)


def test_fork_at_the_end_of_a_bank_copies_nothing() -> None:
    pool = Pool()
    parent = pool.run(range(8))
    child = pool.sequence(range(8))
    assert pool.kv.fork(parent, child) is None
    assert child.num_computed_tokens == 8
    pool.audit()


def test_fork_without_a_bank_to_spare_computes_the_rest_again() -> None:
    pool = Pool(num_banks=2)
    parent = pool.run(range(6))
    child = pool.sequence(range(6))
    assert pool.kv.fork(parent, child) is None
    assert (child.num_computed_tokens, list(child.banks)) == (4, [parent.banks[0]])
    pool.audit()


def test_fork_refuses_what_would_mix_contents() -> None:
    pool = Pool()
    parent = pool.run(range(6))
    with pytest.raises(ValueError, match="tenants never share"):
        pool.kv.fork(parent, pool.sequence(range(6), "bob"))
    with pytest.raises(ValueError, match="does not start with"):
        pool.kv.fork(parent, pool.sequence([*range(5), 9]))
    with pytest.raises(ValueError, match="does not start with"):
        pool.kv.fork(parent, pool.sequence(range(5)))
    with pytest.raises(ValueError, match="must hold no banks"):
        pool.kv.fork(parent, pool.run(range(6)))
    drafting = pool.sequence(range(6))
    drafting.draft([1])
    with pytest.raises(ValueError, match="settle drafts"):
        pool.kv.fork(parent, drafting)
    pool.audit()


def end_turn(
    pool: Pool, s: Sequence, conversation: str = "talk", at: float = 0.0, *, is_good: bool = True
) -> bool:
    """The turn's sequence ends, and what it computed is kept or not."""
    is_kept = pool.kv.end_turn(s, TurnEnd(conversation, at, is_good))
    pool.release(s)
    return is_kept


def test_a_conversations_banks_are_not_evicted_until_it_is_forgotten() -> None:
    pool = Pool(num_banks=4)
    assert end_turn(pool, pool.run(range(9)))
    assert pool.kv.pins.num_banks == 2
    assert counts(pool.kv) == (2, 2, 0)
    big = pool.sequence([9] * 12)
    assert not pool.kv.reserve(big, 12)
    pool.kv.forget("alice", "talk")
    assert counts(pool.kv) == (4, 0, 0)
    assert pool.kv.reserve(big, 12)
    pool.audit()


def test_the_next_turn_keeps_its_banks_in_place_of_the_ones_before() -> None:
    pool = Pool(num_banks=16)
    end_turn(pool, pool.run(range(9)))
    end_turn(pool, pool.run(range(13)))
    assert pool.kv.pins.num_banks == 3
    end_turn(pool, pool.run([7] * 5))
    assert pool.kv.pins.num_banks == 1
    pool.audit()


def test_a_turn_that_breaks_off_leaves_the_last_good_ones_banks() -> None:
    pool = Pool(num_banks=16)
    end_turn(pool, pool.run(range(9)))
    end_turn(pool, pool.run(range(13)), is_good=False)
    assert pool.kv.pins.num_banks == 2
    # A first turn that breaks off is all there is.
    assert end_turn(pool, pool.run([7] * 13), "other", is_good=False)
    assert pool.kv.pins.num_banks == 5


def test_pins_are_per_tenant() -> None:
    pool = Pool()
    end_turn(pool, pool.run(range(5), "alice"))
    end_turn(pool, pool.run(range(5), "bob"))
    assert pool.kv.pins.num_banks == 2
    pool.kv.forget("bob", "talk")
    assert pool.kv.pins.num_banks == 1
    pool.kv.forget("mallory", "talk")
    pool.audit()


def test_forgetting_leaves_what_others_keep_or_hold() -> None:
    pool = Pool(num_banks=16)
    end_turn(pool, pool.run(range(9)), "one")
    end_turn(pool, pool.run([*range(8), 8, 8, 8, 8, 8]), "two")
    running = pool.run(range(17))
    end_turn(pool, pool.run(range(17)), "three")
    pool.kv.forget("alice", "two")
    assert pool.kv.count_cached_tokens(pool.sequence([*range(8), 8, 8, 8, 8, 8])) == 8
    pool.kv.forget("alice", "three")
    pool.audit()
    pool.release(running)
    assert pool.kv.count_cached_tokens(pool.sequence(range(17))) == 16
    pool.kv.forget("alice", "one")
    assert pool.kv.count_cached_tokens(pool.sequence(range(17))) == 16


def test_forgetting_takes_what_is_cached_of_older_turns_too() -> None:
    pool = Pool(num_banks=16)
    end_turn(pool, pool.run(range(9)))
    end_turn(pool, pool.run([0, 1, 2, 3, 9, 9, 9, 9, 9]))
    end_turn(pool, pool.run([7] * 13), is_good=False)
    pool.release(pool.run([5] * 5))
    assert pool.kv.num_cached == 7
    pool.kv.forget("alice", "talk")
    assert pool.kv.num_cached == 1
    pool.audit()


def test_too_many_pins_and_the_one_that_ends_first_gives_way() -> None:
    pool = Pool(num_banks=8, max_pinned_share=0.25)
    first = pool.run([1] * 5)
    assert end_turn(pool, first, "first", at=1)
    assert end_turn(pool, pool.run([2] * 5), "second", at=2)
    assert end_turn(pool, pool.run([2] * 9), "third", at=3)
    assert ("alice", "first") not in pool.kv.pins
    assert ("alice", "third") in pool.kv.pins
    assert pool.kv.pins.num_banks == 2
    pool.audit()


def test_who_comes_back_often_gives_way_later() -> None:
    pool = Pool(num_banks=8, max_pinned_share=0.25)
    for at in range(4):
        end_turn(pool, pool.run([1] * 5), "often", at=at)
    end_turn(pool, pool.run([2] * 5), "once", at=LEASE_S)
    end_turn(pool, pool.run([3] * 5), "new", at=LEASE_S + 1)
    assert ("alice", "often") in pool.kv.pins
    assert ("alice", "once") not in pool.kv.pins
    # But not for ever.
    end_turn(pool, pool.run([4] * 5), "late", at=4 * LEASE_S)
    end_turn(pool, pool.run([5] * 5), "later", at=4 * LEASE_S)
    assert ("alice", "often") not in pool.kv.pins


def test_a_lease_that_has_ended_gives_way_anyway_and_its_banks_go_first() -> None:
    pool = Pool(num_banks=6)
    end_turn(pool, pool.run([1] * 9), at=0)
    pool.release(pool.run([2] * 9))
    pool.kv.pins.drop_ended(LEASE_S - 1)
    assert pool.kv.pins.num_banks == 2
    pool.kv.pins.drop_ended(LEASE_S)
    assert pool.kv.pins.num_banks == 0
    pool.audit()
    pool.compute(pool.sequence([3] * 16))
    assert pool.kv.count_cached_tokens(pool.sequence([2] * 9)) == 8
    assert pool.kv.count_cached_tokens(pool.sequence([1] * 9)) == 0


def test_a_conversation_longer_than_the_share_is_not_kept_and_others_are() -> None:
    pool = Pool(num_banks=8, max_pinned_share=0.25)
    end_turn(pool, pool.run([1] * 5), "short")
    assert not end_turn(pool, pool.run(range(13)), "long")
    assert pool.kv.pins.num_banks == 1
    pool.audit()


def test_there_are_never_more_pins_than_banks_for_them() -> None:
    pool = Pool(num_banks=8)
    for number in range(50):
        end_turn(pool, pool.run([1] * 5), f"talk {number}", at=number)
    assert len(pool.kv.pins) == 4
    assert pool.kv.pins.num_banks == 1


def test_less_than_a_bank_keeps_nothing() -> None:
    pool = Pool()
    assert not end_turn(pool, pool.run([1, 2]))
    assert not pool.kv.pins.drop_first()


def test_bank_keys_name_contents_across_pools() -> None:
    one, two = Pool(), Pool()
    two.run([5] * 20)
    a, b = one.run(range(9)), two.run(range(9))
    assert a.prefix is not None
    assert b.prefix is not None
    assert one.kv.bank_key(a.prefix) == two.kv.bank_key(b.prefix)


def leave(pool: Pool, s: Sequence, conversation: str | None = None) -> None:
    """The sequence ends well, and leaves the bank that it has not filled."""
    pool.kv.leave_tail(s, conversation)
    pool.release(s)


def go_on(pool: Pool, tokens: Iterable[int], tenant: str = "alice") -> tuple[Sequence, int]:
    """A sequence that has attached and borrowed what there is, and how much it borrowed."""
    s = pool.sequence(tokens, tenant)
    pool.kv.match(s)
    assert pool.kv.reserve(s, s.num_uncomputed_tokens)
    moves = pool.kv.borrow(s)
    pool.model.move(moves, [s])
    pool.audit()
    pool.model.check(s, s.num_computed_tokens)
    return s, sum(move.num_positions for move in moves)


@pytest.fixture
def wide() -> Pool:
    """With banks of eight tokens."""
    return Pool(num_banks=8, bank_size=8)


class TestTails:
    def test_what_was_not_filled_is_copied_by_who_goes_on(self, wide: Pool) -> None:
        leave(wide, wide.run(range(14)))
        assert counts(wide.kv) == (6, 2, 0)
        s, num_borrowed = go_on(wide, range(20))
        assert (s.num_computed_tokens, num_borrowed) == (14, 6)
        wide.compute(s)
        assert s.num_committed_banks == 2

    def test_so_is_the_beginning_of_a_full_bank(self, wide: Pool) -> None:
        leave(wide, wide.run(range(16)))
        s, num_borrowed = go_on(wide, [*range(13), 90, 91, 92])
        assert (s.num_computed_tokens, num_borrowed) == (13, 5)
        wide.compute(s)

    def test_the_one_that_has_most_in_common_is_taken(self, wide: Pool) -> None:
        for end in (5, 7, 4):
            leave(wide, wide.run([*range(end), *[50 + end] * (8 - end)]))
        assert go_on(wide, range(9))[1] == 7

    def test_the_last_token_is_computed_all_the_same(self, wide: Pool) -> None:
        leave(wide, wide.run(range(7)))
        assert go_on(wide, range(7))[1] == 6

    def test_three_tokens_are_not_worth_it(self, wide: Pool) -> None:
        leave(wide, wide.run(range(3)))
        assert counts(wide.kv) == (8, 0, 0)
        leave(wide, wide.run(range(8)))
        assert go_on(wide, [0, 1, 2, 60, 61, 62])[1] == 0

    def test_tenants_never_share_them(self, wide: Pool) -> None:
        leave(wide, wide.run(range(7), "alice"))
        assert go_on(wide, range(9), "bob")[1] == 0

    def test_nothing_is_copied_into_a_bank_that_has_been_begun(self, wide: Pool) -> None:
        s = wide.sequence(range(8))
        wide.compute(s, 2)
        leave(wide, wide.run(range(7)))
        assert wide.kv.reserve(s, 6)
        assert wide.kv.borrow(s) == []

    def test_a_longer_one_takes_the_place_of_its_beginning(self, wide: Pool) -> None:
        for end in (5, 6, 7, 6):
            leave(wide, wide.run(range(end)))
            assert wide.kv.num_cached == 1
        s, num_borrowed = go_on(wide, range(10))
        assert num_borrowed == 7
        wide.compute(s)  # and the full bank that of the tail
        assert counts(wide.kv) == (6, 0, 2)

    def test_drafts_are_not_left(self, wide: Pool) -> None:
        s = wide.run(range(5))
        s.draft([5, 6])
        wide.compute(s)
        leave(wide, s)
        assert go_on(wide, range(9))[1] == 5

    def test_they_are_evicted_like_any_bank_and_before_what_they_go_on_from(self) -> None:
        pool = Pool(num_banks=3, bank_size=8)
        leave(pool, pool.run(range(14)))
        assert counts(pool.kv) == (1, 2, 0)
        s = pool.sequence([9] * 16)
        assert pool.kv.reserve(s, 16)
        assert counts(pool.kv) == (0, 1, 2)
        pool.audit()

    def test_a_copy_may_lie_where_its_source_lay(self) -> None:
        pool = Pool(num_banks=1, bank_size=8)
        leave(pool, pool.run(range(7)))
        s, _ = go_on(pool, range(8))
        pool.compute(s)

    def test_a_conversation_is_forgotten_with_its_tail(self, wide: Pool) -> None:
        s = wide.run(range(14))
        wide.kv.end_turn(s, TurnEnd("talk", 0.0))
        leave(wide, s, "talk")
        assert wide.kv.num_cached == 2
        wide.kv.forget("alice", "talk")
        assert counts(wide.kv) == (8, 0, 0)

    def test_also_where_somebody_had_left_the_same_one_before(self, wide: Pool) -> None:
        leave(wide, wide.run(range(14)))
        s = wide.run(range(14))
        wide.kv.end_turn(s, TurnEnd("talk", 0.0))
        leave(wide, s, "talk")
        wide.kv.forget("alice", "talk")
        assert counts(wide.kv) == (8, 0, 0)

    def test_a_tail_of_two_conversations_stays_when_one_is_forgotten(self, wide: Pool) -> None:
        for conversation in ("talk", "more"):
            leave(wide, wide.run(range(6)), conversation)
        wide.kv.forget("alice", "talk")
        assert counts(wide.kv) == (7, 1, 0)

    def test_when_a_lease_ends_its_tail_goes_first(self) -> None:
        pool = Pool(num_banks=6, bank_size=8)
        s = pool.run(range(14))
        pool.kv.end_turn(s, TurnEnd("talk", 0.0))
        leave(pool, s, "talk")
        leave(pool, pool.run([7] * 14))
        pool.kv.pins.drop_ended(LEASE_S)
        pool.audit()
        assert pool.kv.reserve(pool.sequence([3] * 32), 32)
        assert go_on(pool, [7] * 9)[0].num_computed_tokens == 8
