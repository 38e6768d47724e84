"""Which bank holds which tokens: the content address of every bank that was left.

In: a realm and token ids. Out: nodes, each naming one bank. Thread: the engine thread only.
Next: `engine/kv_cache.py`.

A tree per realm: a tenant, or a conversation whose banks are approximate. A node is one bank; its
key is its parent and its exact token ids, so a wrong hit is impossible rather than unlikely:
nothing is hashed down to fewer bits. Keys and values of a bank depend on everything before it,
which is why the path, not the bank's own tokens, is the address.

                ┌ [are you]            a node is *idle* when nobody holds or pins it; who holds a
    [hello ,] ──┤                      child holds its parent, so idle nodes have idle children only
                └ [my name] ─ [is …] ─ [Sam]

A *tail*, as the last one here, is a bank that was not filled: nothing continues it, and nobody
holds it. Its tokens, or the first of any bank's, can be copied by who goes on otherwise.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

from headrace.engine.shifting import num_common

Realm: TypeAlias = str | tuple[str, str]
"""Who may use a bank: a tenant; or a tenant's conversation, where it is approximate."""


SEVERAL: Final = ""
"""No conversation's name."""

_TOKEN_BYTES: Final = 4


class _Siblings(dict[bytes, "Node"]):
    """Banks that continue the same one, by their tokens."""

    __slots__ = ("_in_order",)

    def __init__(self) -> None:
        self._in_order: list[bytes] = []

    def add(self, node: Node) -> None:
        self[node.tokens] = node
        insort(self._in_order, node.tokens)

    def take_out(self, node: Node) -> None:
        del self[node.tokens]
        del self._in_order[bisect_left(self._in_order, node.tokens)]

    def nearest(self, tokens: bytes) -> Near | None:
        """The one that begins with most of `tokens`; None where there is none at all.

        In the order of their bytes, nobody has more in common with `tokens` than one of its two
        neighbours, however many thousands there are."""
        at = bisect_left(self._in_order, tokens)
        beside = self._in_order[max(0, at - 1) : at + 1]
        if not beside:
            return None
        num_tokens, key = max((num_common(key, 0, tokens, 0), key) for key in beside)
        # Of several, one that has no other tokens.
        whole = self.get(tokens[: num_tokens * _TOKEN_BYTES])
        return Near(whole if whole is not None else self[key], num_tokens)


_NOBODY: Final = _Siblings()
"""The children of all who have none; never added to."""


class Node:
    """One bank, its place in the tree, and how many reasons there are to keep it."""

    __slots__ = (
        "_digest",
        "bank",
        "children",
        "conversation",
        "num_holders",
        "num_pins",
        "parent",
        "realm",
        "tokens",
    )

    def __init__(self, bank: int, parent: Node | None, realm: Realm, tokens: bytes) -> None:
        self.bank = bank
        self.parent = parent
        self.realm = realm
        self.tokens = tokens
        self.children = _NOBODY
        self.num_holders = 0
        """Sequences whose bank table names this bank."""
        self.num_pins = 0
        """Conversations that asked to keep it."""
        self.conversation: str | None = None
        """Whose turns left it; `SEVERAL` where more than one conversation's did."""
        self._digest: bytes | None = None

    def path(self) -> Iterator[Node]:
        """This node, its parent, and so on up to the first bank: children before parents."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Near(NamedTuple):
    """A bank that begins as was asked for, and with how many of those tokens."""

    node: Node
    num_tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether it has no other tokens."""
        return self.num_tokens * _TOKEN_BYTES == len(self.node.tokens)


class PrefixIndex:
    """The trees of all realms, and the idle nodes in the order in which they may be evicted.

    Idle nodes are kept least recently used first. Sequences let go of children before parents, so
    a child always stands before its parent and the first idle node is always a leaf: eviction needs
    no search, and never makes a cached bank unreachable.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._roots: dict[Realm, _Siblings] = {}
        self._idle: OrderedDict[Node, None] = OrderedDict()
        self._num_nodes = 0

    def __len__(self) -> int:
        return self._num_nodes

    def __iter__(self) -> Iterator[Node]:
        """All nodes, parents before children."""
        queue = [node for root in self._roots.values() for node in root.values()]
        for node in queue:
            queue.extend(node.children.values())
            yield node

    def of_realm(self, realm: Realm) -> list[Node]:
        """All nodes of one tree, parents before children."""
        nodes = list(self._roots.get(realm, {}).values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def is_idle(self, node: Node) -> bool:
        return not (node.num_holders or node.num_pins)

    def find(self, parent: Node | None, realm: Realm, tokens: bytes) -> Node | None:
        """The bank that continues `parent` with exactly `tokens` (32-bit ids, native order)."""
        if parent is not None:
            return parent.children.get(tokens)
        root = self._roots.get(realm)
        return root.get(tokens) if root is not None else None

    def nearest(self, parent: Node | None, realm: Realm, tokens: bytes, least: int) -> Near | None:
        """Of the banks that continue `parent`, the one that begins with most of `tokens`; None
        where none has the first `least` of them."""
        siblings = parent.children if parent is not None else self._roots.get(realm)
        near = siblings.nearest(tokens) if siblings else None
        return near if near is not None and near.num_tokens >= least else None

    def insert(self, parent: Node | None, realm: Realm, tokens: bytes, bank: int) -> Node:
        """Register `bank`. The caller has made sure that `find` finds nothing, and holds it."""
        node = Node(bank, parent, realm, tokens)
        node.num_holders = 1
        self._siblings(node).add(node)
        self._num_nodes += 1
        return node

    def hold(self, node: Node) -> None:
        """Count one more sequence that uses the bank."""
        if self.is_idle(node):
            del self._idle[node]
        node.num_holders += 1

    def let_go(self, node: Node) -> None:
        """Undo one `hold`. Call it for children before parents."""
        node.num_holders -= 1
        if self.is_idle(node):
            self._idle[node] = None

    def pin(self, node: Node) -> None:
        """Count one more reason never to evict the bank."""
        if self.is_idle(node):
            del self._idle[node]
        node.num_pins += 1

    def unpin(self, node: Node) -> None:
        """Undo one `pin`. Call it for children before parents."""
        node.num_pins -= 1
        if self.is_idle(node):
            self._idle[node] = None

    def make_oldest(self, leaf: Node) -> None:
        """Let an idle leaf be evicted next, and then those above it that nothing else continues.
        Tails continue nothing: they go first."""
        old: list[Node] = []
        node: Node | None = leaf
        while node is not None and self.is_idle(node):
            others = [child for child in node.children.values() if child not in old[-1:]]
            if not all(len(child.tokens) < len(node.tokens) for child in others):
                break
            old += [*others, node]
            node = node.parent
        for node in reversed(old):
            self._idle.move_to_end(node, last=False)

    def evict(self) -> int:
        """Forget the least recently used idle node and give its bank back. Raises `KeyError` when
        nothing is idle."""
        node, _ = self._idle.popitem(last=False)
        return self._detach(node)

    def remove(self, node: Node) -> int:
        """Forget an idle node without children, and give its bank back."""
        del self._idle[node]
        return self._detach(node)

    def _detach(self, node: Node) -> int:
        siblings = self._siblings(node)
        siblings.take_out(node)
        if node.parent is None and not siblings:
            del self._roots[node.realm]
        self._num_nodes -= 1
        return node.bank

    def digest(self, node: Node) -> bytes:
        """32 bytes that name the bank's content for good: model identity, tenant and every token
        up to its end. The same in every process, so that banks can be parked on disk."""
        missing = []
        step: Node | None = node
        while step is not None and step._digest is None:
            missing.append(step)
            step = step.parent
        for step in reversed(missing):
            above = step.parent._digest if step.parent is not None else None
            seed = above if above is not None else self._root_digest(step.realm)
            step._digest = _next_digest(seed, step.tokens)
        digest = node._digest
        assert digest is not None
        return digest

    def digests(self, node: Node | None, realm: Realm, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """What `digest` will say of banks that are not there yet: those that go on from `node`, or
        from nothing, with each of `blocks` in turn."""
        digest = self.digest(node) if node is not None else self._root_digest(realm)
        for tokens in blocks:
            digest = _next_digest(digest, tokens)
            yield digest

    def has(self, node: Node) -> bool:
        """Whether the node is here still, and was not evicted."""
        return self.find(node.parent, node.realm, node.tokens) is node

    def _siblings(self, node: Node) -> _Siblings:
        parent = node.parent
        if parent is not None:
            if parent.children is _NOBODY:
                parent.children = _Siblings()
            return parent.children
        return self._roots.setdefault(node.realm, _Siblings())

    def _root_digest(self, realm: Realm) -> bytes:
        if not isinstance(realm, str):
            raise ValueError(f"banks that were moved are the same in no other process: {realm!r}")
        # The length keeps ("ab", "c") apart from ("a", "bc").
        identity = self._identity.encode()
        return blake2b(
            b"%d:%b%b" % (len(identity), identity, realm.encode(errors="surrogatepass"))
        ).digest()


def _next_digest(before: bytes, tokens: bytes) -> bytes:
    return blake2b(before + tokens, digest_size=32).digest()
