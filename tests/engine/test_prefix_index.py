import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.prefix_index import Node, PrefixIndex


def ids(*tokens: int) -> bytes:
    return array("i", tokens).tobytes()


def chain(index: PrefixIndex, tenant: str, *parts: bytes, bank: int = 0) -> list[Node]:
    """Insert banks one below the other, held once each."""
    nodes: list[Node] = []
    for i, part in enumerate(parts):
        parent = nodes[-1] if nodes else None
        nodes.append(index.insert(parent, tenant, part, bank + i))
    return nodes


def let_go(index: PrefixIndex, nodes: list[Node]) -> None:
    for node in reversed(nodes):
        index.let_go(node)


def test_find_needs_the_same_parent_tenant_and_tokens() -> None:
    index = PrefixIndex("model")
    a, b = chain(index, "alice", ids(1, 2), ids(3, 4))
    assert index.find(None, "alice", ids(1, 2)) is a
    assert index.find(a, "alice", ids(3, 4)) is b
    assert index.find(None, "bob", ids(1, 2)) is None
    assert index.find(None, "alice", ids(3, 4)) is None
    assert index.find(b, "alice", ids(3, 4)) is None
    assert index.find(a, "alice", ids(4, 3)) is None


def test_eviction_takes_children_before_parents() -> None:
    index = PrefixIndex("model")
    nodes = chain(index, "alice", ids(1), ids(2), ids(3))
    let_go(index, nodes)
    assert [index.evict() for _ in nodes] == [2, 1, 0]
    assert len(index) == 0
    assert index.find(None, "alice", ids(1)) is None


def test_eviction_takes_the_least_recently_used_first() -> None:
    index = PrefixIndex("model")
    old = chain(index, "alice", ids(1), bank=0)
    new = chain(index, "alice", ids(2), bank=1)
    let_go(index, old)
    let_go(index, new)
    index.hold(old[0])
    index.let_go(old[0])
    assert [index.evict(), index.evict()] == [1, 0]


def test_a_parent_in_use_outlives_its_evicted_child_and_may_have_it_again() -> None:
    index = PrefixIndex("model")
    a, b = chain(index, "alice", ids(1), ids(2))
    index.let_go(b)
    assert index.evict() == b.bank
    assert index.find(a, "alice", ids(2)) is None
    again = index.insert(a, "alice", ids(2), 7)
    assert index.find(a, "alice", ids(2)) is again


@pytest.mark.parametrize("keep", ["hold", "pin"])
def test_what_is_held_or_pinned_is_not_idle(keep: str) -> None:
    index = PrefixIndex("model")
    (a,) = chain(index, "alice", ids(1))
    if keep == "pin":
        index.pin(a)
        index.let_go(a)
    assert index.num_idle == 0
    with pytest.raises(KeyError):
        index.evict()
    if keep == "pin":
        index.unpin(a)
    else:
        index.let_go(a)
    assert index.num_idle == 1


def test_the_last_bank_of_a_tenant_takes_the_tenant_with_it() -> None:
    index = PrefixIndex("model")
    let_go(index, chain(index, "alice", ids(1)))
    index.evict()
    assert not index._roots


def test_iteration_shows_every_node_parents_first() -> None:
    index = PrefixIndex("model")
    nodes = chain(index, "alice", ids(1), ids(2), ids(3))
    other = chain(index, "bob", ids(1), bank=3)
    seen = list(index)
    assert set(seen) == {*nodes, *other}
    assert [node for node in seen if node in nodes] == nodes


FEW_TOKENS = st.lists(st.sampled_from([0, 1, 255, 256, 65_536]), min_size=1, max_size=6)


@given(
    parts=st.lists(FEW_TOKENS, unique_by=tuple),
    gone=st.sets(st.integers(0, 20)),
    wanted=FEW_TOKENS,
    least=st.integers(1, 3),
)
def test_the_nearest_has_most_in_common_as_if_all_were_looked_at(
    parts: list[list[int]], gone: set[int], wanted: list[int], least: int
) -> None:
    def common(part: list[int]) -> int:
        pairs = zip(part, wanted, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(part), len(wanted)))

    index = PrefixIndex("model")
    nodes = [index.insert(None, "alice", ids(*part), bank) for bank, part in enumerate(parts)]
    let_go(index, nodes)
    for bank in gone & set(range(len(parts))):
        index.remove(nodes[bank])
    left = [part for bank, part in enumerate(parts) if bank not in gone]
    most = max(map(common, left), default=0)
    near = index.nearest(None, "alice", ids(*wanted), least)
    if most < least:
        assert near is None
    else:
        assert near is not None and near.num_tokens == most
        assert common(parts[near.node.bank]) == most and near.node.bank not in gone
        assert near.is_whole == (wanted[:most] in left)


def test_digests_differ_wherever_anything_differs() -> None:
    digests = []
    for identity, tenant in [("m", "t"), ("n", "t"), ("m", "u"), ("mt", ""), ("", "mt")]:
        index = PrefixIndex(identity)
        for first in (1, 2):
            digests += [
                index.digest(node) for node in chain(index, tenant, ids(first), ids(5), ids(5))
            ]
    assert len(set(digests)) == len(digests) == 30


def test_a_digest_does_not_depend_on_the_order_of_asking_or_the_bank() -> None:
    one = chain(PrefixIndex("m"), "t", ids(1), ids(2), ids(3))
    two = chain(PrefixIndex("m"), "t", ids(1), ids(2), ids(3), bank=10)
    index = PrefixIndex("m")
    deep_first = [index.digest(node) for node in reversed(one)][::-1]
    assert deep_first == [index.digest(node) for node in two]


def test_a_digest_is_the_same_in_another_process() -> None:
    program = (
        "from headrace.engine.prefix_index import PrefixIndex; from array import array;"
        "i = PrefixIndex('m'); n = i.insert(None, 't', array('i', [1, 2]).tobytes(), 0);"
        "print(i.digest(n).hex())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    index = PrefixIndex("m")
    (node,) = chain(index, "t", ids(1, 2))
    assert run.stdout.strip() == index.digest(node).hex(), run.stderr


def test_a_very_deep_path_needs_no_recursion() -> None:
    index = PrefixIndex("m")
    nodes = chain(index, "t", *(ids(i) for i in range(5000)))
    assert len(index.digest(nodes[-1])) == 32
    let_go(index, nodes)
    assert index.num_idle == 5000
