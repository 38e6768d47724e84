"""Which banks are on disk, as far as is known, and which of them a sequence could use.

In: the names of files. Out: the names of a sequence's banks. Thread: the engine thread only; knows
no files. Next: `back.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from headrace.engine.kv_cache import KVCache
from headrace.engine.pins import Owner
from headrace.engine.prefix_index import Node
from headrace.engine.sequence import Sequence


class Parked:
    """Names of banks: 32 bytes each, of all that a bank's content depends on."""

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv
        self._names: set[bytes] = set()
        self._key = b""

    def open(self, identity: str, names: Iterable[bytes]) -> None:
        """Begin: `identity` is what contents depend on beside tenant and tokens."""
        self._key = hashlib.sha256(identity.encode()).digest()
        self._names.update(names)

    @property
    def is_open(self) -> bool:
        return bool(self._key)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def add(self, name: bytes) -> None:
        self._names.add(name)

    def discard(self, names: Iterable[bytes]) -> None:
        self._names.difference_update(names)

    def name_of(self, node: Node) -> bytes:
        """The name of a bank of this model, which need not be on disk. Only once open."""
        return self._name(self._kv.index.digest(node))

    def names_after(self, sequence: Sequence) -> list[bytes]:
        """Banks that go on from what a sequence has computed, in order: all that could be read for
        it."""
        size = self._kv.bank_size
        first = sequence.num_committed_banks
        if not self._names or sequence.num_computed_tokens != first * size:
            return []
        last = sequence.num_silent_tokens // size
        blocks = (sequence.tokens[i * size : (i + 1) * size].tobytes() for i in range(first, last))
        names = []
        for digest in self._kv.index.digests(sequence.prefix, sequence.tenant, blocks):
            name = self._name(digest)
            if name not in self._names:
                break
            names.append(name)
        return names

    def _name(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=32).digest()


def name_of_owner(owner: Owner) -> bytes:
    """Of a conversation's list: the same for all models, so that all are forgotten together."""
    tenant, conversation = (part.encode(errors="surrogatepass") for part in owner)
    # The length keeps ("ab", "c") apart from ("a", "bc").
    return hashlib.blake2b(
        b"%d:%b%b" % (len(tenant), tenant, conversation), digest_size=32
    ).digest()
