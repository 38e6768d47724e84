"""The embedding model that computes: a folder of files behind the C++ core.

In: a folder. Out: a `NativeEmbedder`, which implements `embedder.Embedder`.
Thread: any but the event loop. Next: `native/bindings.cpp`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace import _native
from headrace.errors import InvalidModelFile, ModelError, UnsupportedModel
from headrace.model.digest import digest_of
from headrace.model.embedder import Embedded
from headrace.model.embedding import safetensors
from headrace.model.embedding.config import EncoderConfig, read_config
from headrace.model.embedding.folder import WEIGHTS
from headrace.model.embedding.layout import layout
from headrace.model.embedding.slices import slices
from headrace.model.embedding.turns import Turns
from headrace.model.embedding.wordpiece import TOKENIZER, WordPiece
from headrace.model.native import check_isa, check_threads

if TYPE_CHECKING:
    from headrace.model.embedder import Vectors

SLICE_TOKENS = 256
"""About the most tokens that are computed at once: some milliseconds of all cores, so that whoever
shares them, or waits for this model, waits no longer."""
SLICE_TEXTS = 64
"""The most texts whose tokens are made at once."""


def load(
    folder: Path, *, name: str | None = None, threads: int | None = None, isa: str | None = None
) -> NativeEmbedder:
    """Load an embedding model for computing; `name` is what to call it, else the folder's name.

    `threads` and `isa` as for language models. Raises InvalidModelFile, UnsupportedModel,
    ModelError when a file cannot be read or does not fit into memory, and InvalidRequest for
    threads or an instruction set that cannot run here.
    """
    chosen = isa or os.environ.get("HEADRACE_ISA") or ""
    check_isa(chosen)
    check_threads(threads)
    config = read_config(folder)
    file = safetensors.read(folder / WEIGHTS)
    refs = layout(file, config)
    wordpiece = WordPiece(
        folder / TOKENIZER, max_tokens=config.max_tokens, vocab_size=config.vocab_size
    )
    try:
        core = _native.EncoderCore(str(file.path), _shape(config), refs, threads or 0, chosen)
    except (MemoryError, OSError, RuntimeError) as error:
        raise _load_error(file, error) from error
    identity = _identity(digest_of(file.path), wordpiece.digest, config)
    return NativeEmbedder(name or folder.name, identity, config, wordpiece, core)


def _shape(config: EncoderConfig) -> dict[str, object]:
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "ffn_size": config.ffn_size,
        "vocab_size": config.vocab_size,
        "context_length": config.num_positions,
        "norm_eps": config.norm_eps,
        "takes_first": config.takes_first,
    }


def _identity(weights: str, tokenizer: str, config: EncoderConfig) -> str:
    pooling = "first" if config.takes_first else "mean"
    return (
        f"{weights[:32]}/{tokenizer[:16]}/{pooling}-{config.max_tokens}"
        f"/numerics-{_native.NUMERICS_VERSION}"
    )


def _load_error(file: safetensors.SafetensorsFile, error: Exception) -> ModelError:
    name = file.path.name
    if isinstance(error, MemoryError):
        return ModelError(f"{name}: not enough memory for the weights")
    if str(error) == os.strerror(errno.EAGAIN):
        return ModelError(f"{name}: the system grants no more threads; ask for fewer")
    if str(error).startswith(("cannot open ", "cannot read ")):
        return ModelError(f"{name}: {error}")
    if "ends past the end" in str(error):
        return InvalidModelFile(f"{name}: changed while it was loading; load it again")
    if "are no numbers" in str(error):
        return InvalidModelFile(f"{name}: {error}")
    return UnsupportedModel(f"{name}: {error}")


class NativeEmbedder:
    """A loaded model; see `embedder.Embedder` for what it promises."""

    def __init__(
        self,
        name: str,
        identity: str,
        config: EncoderConfig,
        wordpiece: WordPiece,
        core: _native.EncoderCore,
    ) -> None:
        self.name = name
        self.identity = identity
        self.config = config
        self.dim = config.hidden_size
        self.max_tokens = config.max_tokens
        self.isa = core.isa
        self.num_threads = core.num_threads
        self.weight_bytes = core.weight_bytes
        self._wordpiece = wordpiece
        self._core = core
        self._turns = Turns()

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Slice by slice; between two, whoever else waits for this model has a turn."""
        vectors: Vectors = np.empty((len(texts), self.dim), np.float32)
        num_tokens = 0
        truncated: list[int] = []
        for begin in range(0, len(texts), SLICE_TEXTS):
            tokens = self._wordpiece.encode(texts[begin : begin + SLICE_TEXTS])
            truncated += (begin + i for i in tokens.truncated)
            num_tokens += sum(map(len, tokens.ids))
            for start, end in slices([len(ids) for ids in tokens.ids], SLICE_TOKENS):
                self._compute(tokens.ids[start:end], vectors[begin + start : begin + end])
        return Embedded(vectors, num_tokens, tuple(truncated))

    def _compute(self, ids: list[list[int]], out: Vectors) -> None:
        lengths = np.array([len(each) for each in ids], np.int32)
        tokens = np.fromiter((token for each in ids for token in each), np.int32, lengths.sum())
        try:
            with self._turns.turn():
                self._core.embed(tokens, lengths, out)
        except (MemoryError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.name}: cannot embed: {error}") from error
