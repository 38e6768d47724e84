from collections.abc import Iterable

import pytest

from headrace.engine.kv_cache import BankCopy, KVCache
from headrace.engine.scheduler import Plan, PlannedSpan
from headrace.engine.sequence import Sequence, State
from support.scheduling import BankModel, audit

BANK = 4


class Pool:
    """A cache, a model of its banks, and every sequence that touches them."""

    def __init__(self, num_banks: int = 8, **options: float) -> None:
        self.kv = KVCache(num_banks, BANK, "model", **options)
        self.model = BankModel(BANK)
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


def test_pinned_banks_are_not_evicted_until_unpinned() -> None:
    pool = Pool(num_banks=4)
    s = pool.run(range(9))
    assert pool.kv.pin(s, "talk")
    pool.release(s)
    assert pool.kv.num_pinned == 2
    assert counts(pool.kv) == (2, 2, 0)
    big = pool.sequence([9] * 12)
    assert not pool.kv.reserve(big, 12)
    pool.kv.unpin("alice", "talk")
    assert pool.kv.reserve(big, 12)
    pool.audit()


def test_pinning_again_replaces_the_conversations_old_banks() -> None:
    pool = Pool(num_banks=16)
    short, long = pool.run(range(9)), pool.run(range(13))
    pool.kv.pin(short, "talk")
    pool.kv.pin(long, "talk")
    assert pool.kv.num_pinned == 3
    other = pool.run([7] * 5)
    pool.kv.pin(other, "talk")
    assert pool.kv.num_pinned == 1
    pool.audit()


def test_pins_are_per_tenant() -> None:
    pool = Pool()
    alice, bob = pool.run(range(5), "alice"), pool.run(range(5), "bob")
    pool.kv.pin(alice, "talk")
    pool.kv.pin(bob, "talk")
    assert pool.kv.num_pinned == 2
    pool.kv.unpin("bob", "talk")
    assert pool.kv.num_pinned == 1
    pool.kv.unpin("mallory", "talk")
    pool.audit()


def test_the_oldest_pins_give_way_to_new_ones() -> None:
    pool = Pool(num_banks=8, max_pinned_share=0.25)
    first, second = pool.run([1] * 5), pool.run([2] * 5)
    assert pool.kv.pin(first, "first")
    assert pool.kv.pin(second, "second")
    assert pool.kv.pin(pool.run([2] * 9), "third")
    assert pool.kv.num_pinned == 2
    pool.release(first)
    assert pool.kv.num_available == pool.kv.num_free + 1
    pool.audit()


def test_a_pin_larger_than_the_share_gives_way_itself() -> None:
    pool = Pool(num_banks=8, max_pinned_share=0.25)
    assert not pool.kv.pin(pool.run(range(13)), "talk")
    assert pool.kv.num_pinned == 0
    pool.audit()


def test_pinning_less_than_a_bank_pins_nothing() -> None:
    pool = Pool()
    assert not pool.kv.pin(pool.run([1, 2]), "talk")
    assert not pool.kv.drop_oldest_pin()


def test_bank_keys_name_contents_across_pools() -> None:
    one, two = Pool(), Pool()
    two.run([5] * 20)
    a, b = one.run(range(9)), two.run(range(9))
    assert a.prefix is not None
    assert b.prefix is not None
    assert one.kv.bank_key(a.prefix) == two.kv.bank_key(b.prefix)
