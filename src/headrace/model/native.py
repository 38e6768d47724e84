"""The model that computes: a GGUF file behind the C++ core.

In: a path. Out: a `NativeModel`, which implements `interface.Model`.
Thread: the engine thread, once loaded. Next: `native/bindings.cpp`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from headrace import _native
from headrace.errors import InvalidModelFile, InvalidRequest, ModelError, UnsupportedModel
from headrace.model import architecture, gguf, roles
from headrace.model.architecture import Hyperparameters
from headrace.model.gguf import GGUFFile
from headrace.model.interface import (
    Batch,
    ModelSpec,
    Move,
    Sampled,
    SampleRow,
    SamplerState,
    SamplingSettings,
)
from headrace.model.roles import ModelTensors

P = ParamSpec("P")
R = TypeVar("R")

_MAX_THREADS = 1024
_FINGERPRINT_SAMPLE = 4096
_NATIVE_ROLES = {"output_head": "output"}


def load(
    path: str | Path | GGUFFile, *, threads: int | None = None, isa: str | None = None
) -> NativeModel:
    """Load a GGUF model for computing.

    `threads` defaults to one per usable physical core. `isa` ("amx", "avx512", "avx2", "portable")
    defaults to `HEADRACE_ISA`, else the best this processor has. Raises InvalidModelFile,
    UnsupportedModel, InvalidRequest for threads or an instruction set that cannot run here, and
    ModelError when the file cannot be read or does not fit into memory.
    """
    file = path if isinstance(path, GGUFFile) else gguf.read(Path(path))
    hyper = architecture.describe(file)
    tensors = roles.layout(file, hyper)
    chosen = isa or os.environ.get("HEADRACE_ISA") or ""
    check_isa(chosen)
    check_threads(threads)
    try:
        core = _native.Core(
            str(file.path), _shape(hyper), _tensor_refs(tensors, hyper), threads or 0, chosen
        )
        return NativeModel(core, file, hyper)
    except (MemoryError, OSError, RuntimeError) as error:
        raise _load_error(file, error) from error


def check_isa(isa: str) -> None:
    known = _native.cpu()["instruction_sets"]
    if isa and isa not in known:
        raise InvalidRequest(
            f"instruction set {isa!r} cannot run here; this processor has: {', '.join(known)}",
            param="isa",
        )


def check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise InvalidRequest(
            f"{threads} threads cannot compute; ask for 1 to {_MAX_THREADS}, or leave it open",
            param="threads",
        )


def _load_error(file: GGUFFile, error: Exception) -> ModelError:
    name = file.path.name
    if isinstance(error, MemoryError):
        return ModelError(f"{name}: not enough memory for the weights")
    if str(error) == os.strerror(errno.EAGAIN):
        # std::system_error of a thread that could not start; the core's own errors say what failed.
        return ModelError(f"{name}: the system grants no more threads; ask for fewer")
    try:
        with file.path.open("rb") as stream:
            num_bytes = stream.seek(0, os.SEEK_END)
    except OSError as gone:
        return ModelError(f"{name}: cannot be read any more: {gone.strerror}")
    if num_bytes != file.num_bytes:
        return InvalidModelFile(
            f"{name}: changed while it was loading, from {file.num_bytes:,} to {num_bytes:,} "
            "bytes; load it again when nothing writes to it"
        )
    if str(error).startswith(("cannot open ", "cannot read ")):
        return ModelError(f"{name}: {error}")
    return UnsupportedModel(f"{name}: {error}")


def _shape(hyper: Hyperparameters) -> dict[str, object]:
    return {
        "num_layers": hyper.num_layers,
        "hidden_size": hyper.hidden_size,
        "num_heads": hyper.num_heads,
        "num_kv_heads": hyper.num_kv_heads,
        "head_dim": hyper.head_dim,
        "ffn_size": hyper.ffn_size,
        "vocab_size": hyper.vocab_size,
        "context_length": hyper.context_length,
        "rope_dim": hyper.rope_dim,
        "rope_theta": hyper.rope_theta,
        "rope_interleaved": hyper.rope_style == "interleaved",
        "rope_factors": list(hyper.rope_factors or ()),
        "rms_eps": hyper.rms_eps,
        "attention_scale": hyper.attention_scale,
    }


def _tensor_refs(
    tensors: ModelTensors, hyper: Hyperparameters
) -> list[tuple[str, int, int, int, int, int, int]]:
    refs = []
    for role, layer, tensor in tensors.by_role():
        if role == "output_head" and hyper.tied_head:
            continue
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        refs.append(
            (
                _NATIVE_ROLES.get(role, role),
                -1 if layer is None else layer,
                tensor.type.type_id,
                rows,
                tensor.shape[-1],
                tensor.offset,
                tensor.num_bytes,
            )
        )
    return refs


def _fingerprint(file: GGUFFile) -> str:
    """A digest of the header and of both ends of every tensor: cheap, and different for any two
    files that were not made to collide."""
    digest = hashlib.sha256(str(file.num_bytes).encode())
    with file.path.open("rb") as stream:
        first = min((t.offset for t in file.tensors.values()), default=0)
        digest.update(stream.read(first))
        for tensor in file.tensors.values():
            for start in (tensor.offset, tensor.offset + tensor.num_bytes - _FINGERPRINT_SAMPLE):
                stream.seek(max(tensor.offset, start))
                digest.update(stream.read(min(_FINGERPRINT_SAMPLE, tensor.num_bytes)))
    return digest.hexdigest()[:32]


def _refusing(what: str, expected: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Errors of the core become a `ModelError` that says `what` failed, and what is `expected`
    where an argument has the wrong type."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except MemoryError as error:
                raise ModelError(f"{what}: not enough memory") from error
            except (TypeError, OverflowError) as error:
                raise ModelError(f"{what}: expected {expected}") from error
            except (ValueError, RuntimeError) as error:
                # The core's word for an item of the wrong type inside a sequence.
                reason = f"expected {expected}" if "bad_cast" in str(error) else str(error)
                raise ModelError(f"{what}: {reason}") from error

        return call

    return decorate


_BANKS = "numbers of banks in the pool, 32-bit"


class NativeModel:
    """A loaded model; see `interface.Model` for what each method promises."""

    def __init__(self, core: _native.Core, file: GGUFFile, hyper: Hyperparameters) -> None:
        self._core = core
        self.hyper = hyper
        self.spec = ModelSpec(
            name=file.path.stem,
            architecture=hyper.architecture,
            quantization=architecture.quantization(file),
            vocab_size=hyper.vocab_size,
            context_length=hyper.context_length,
            bank_size=_native.BANK_SIZE,
            bank_bytes=core.bank_bytes,
            num_layers=hyper.num_layers,
            num_parameters=architecture.num_parameters(file),
            weight_bytes=core.weight_bytes,
            isa=core.isa,
            num_threads=core.num_threads,
            identity=f"{_fingerprint(file)}/kv-f16/numerics-{_native.NUMERICS_VERSION}",
            path=file.path,
        )

    @_refusing("the KV pool cannot be made", "a number of banks, 32-bit")
    def allocate(self, num_banks: int) -> None:
        try:
            self._core.allocate(num_banks)
        except MemoryError as error:
            size = num_banks * self.spec.bank_bytes
            raise ModelError(f"no memory for a KV pool of {size:,} bytes") from error

    @_refusing("banks cannot be touched", "two numbers of at least 0")
    def touch(self, first: int, count: int) -> None:
        self._core.touch(first, count)

    @_refusing(
        "the batch does not fit the model",
        "spans of (array('i') of tokens, position, array('i') of banks, number of logits)",
    )
    def step(self, batch: Batch) -> None:
        self._core.step(batch)

    @_refusing(
        "these sampling settings cannot be used",
        "numbers in range: 32-bit but for a 64-bit seed, `logit_bias` as pairs of token and bias",
    )
    def make_sampler(self, settings: SamplingSettings) -> SamplerState:
        s = settings
        return cast(
            SamplerState,
            _native.Sampler(
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
                min_p=s.min_p,
                repetition_penalty=s.repetition_penalty,
                frequency_penalty=s.frequency_penalty,
                presence_penalty=s.presence_penalty,
                seed=s.seed & (2**64 - 1),
                choice=s.choice,
                num_logprobs=s.num_logprobs,
                want_logprob=s.want_logprob,
                logit_bias=s.logit_bias,
            ),
        )

    @_refusing(
        "these rows cannot be sampled",
        "rows of (logits row, sampler, position, mask of 32-bit words in format 'I' or None)",
    )
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return [Sampled._make(outcome) for outcome in self._core.sample(rows)]

    @_refusing("the bank cannot be copied", _BANKS)
    def copy_bank(self, source: int, target: int) -> None:
        self._core.copy_bank(source, target)

    @_refusing("the bank cannot be shifted", f"{_BANKS}, and a 32-bit distance")
    def shift_bank(self, bank: int, delta: int) -> None:
        self._core.shift_bank(bank, delta)

    @_refusing("positions cannot be moved", "moves of six 32-bit numbers")
    def move(self, moves: Sequence[Move]) -> None:
        self._core.move(moves)

    @_refusing("the bank cannot be exported", _BANKS)
    def export_bank(self, bank: int) -> bytes:
        return self._core.export_bank(bank)

    @_refusing("the bank cannot be imported", f"{_BANKS}, and bytes")
    def import_bank(self, bank: int, data: bytes) -> None:
        self._core.import_bank(bank, data)

    @_refusing("these logits cannot be read", "the number of a row of the last step")
    def logits(self, row: int) -> memoryview[float]:
        return memoryview(self._core.logits(row)).cast("f")

    def close(self) -> None:
        self._core.close()
