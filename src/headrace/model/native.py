"""The model that computes: a GGUF file behind the C++ core.

In: a path. Out: a `NativeModel`, which implements `interface.Model`.
Thread: the engine thread, once loaded. Next: `native/bindings.cpp`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from headrace import _native
from headrace.errors import HeadraceError, InvalidRequest, ModelError, UnsupportedModel
from headrace.model import architecture, gguf
from headrace.model.architecture import Hyperparameters, ModelTensors
from headrace.model.gguf import GGUFFile
from headrace.model.interface import (
    Batch,
    ModelSpec,
    Sampled,
    SampleRow,
    SamplerState,
    SamplingSettings,
)

_FINGERPRINT_SAMPLE = 4096
_NATIVE_ROLES = {"output_head": "output"}


def load(
    path: str | Path | GGUFFile, *, threads: int | None = None, isa: str | None = None
) -> NativeModel:
    """Load a GGUF model for computing.

    `threads` defaults to one per usable physical core. `isa` ("avx512", "avx2", "portable")
    defaults to `HEADRACE_ISA`, else the best this processor has. Raises InvalidModelFile,
    UnsupportedModel, InvalidRequest for an instruction set that cannot run here, and ModelError
    when the file cannot be read or does not fit into memory.
    """
    file = path if isinstance(path, GGUFFile) else gguf.read(Path(path))
    hyper = architecture.describe(file)
    tensors = architecture.layout(file, hyper)
    chosen = isa or os.environ.get("HEADRACE_ISA") or ""
    _check_isa(chosen)
    try:
        core = _native.Core(
            str(file.path), _shape(hyper), _tensor_refs(tensors, hyper), threads or 0, chosen
        )
    except MemoryError as error:
        raise ModelError(f"{file.path.name}: not enough memory for the weights") from error
    except RuntimeError as error:
        raise UnsupportedModel(f"{file.path.name}: {error}") from error
    return NativeModel(core, file, hyper)


def _check_isa(isa: str) -> None:
    known = _native.cpu()["instruction_sets"]
    if isa and isa not in known:
        raise InvalidRequest(
            f"instruction set {isa!r} cannot run here; this processor has: {', '.join(known)}",
            param="isa",
        )


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
        )

    def allocate(self, num_banks: int) -> None:
        try:
            self._core.allocate(num_banks)
        except MemoryError as error:
            size = num_banks * self.spec.bank_bytes
            raise ModelError(f"no memory for a KV pool of {size:,} bytes") from error

    def step(self, batch: Batch) -> None:
        try:
            self._core.step(batch)
        except (ValueError, TypeError, MemoryError) as error:
            raise _step_error(error) from error

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

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return [Sampled._make(outcome) for outcome in self._core.sample(rows)]

    def copy_bank(self, source: int, target: int) -> None:
        self._core.copy_bank(source, target)

    def shift_bank(self, bank: int, delta: int) -> None:
        self._core.shift_bank(bank, delta)

    def export_bank(self, bank: int) -> bytes:
        return self._core.export_bank(bank)

    def import_bank(self, bank: int, data: bytes) -> None:
        self._core.import_bank(bank, data)

    def logits(self, row: int) -> memoryview[float]:
        return memoryview(self._core.logits(row)).cast("f")

    def close(self) -> None:
        self._core.close()


def _step_error(error: Exception) -> HeadraceError:
    if isinstance(error, MemoryError):
        return ModelError("no memory for this step's activations")
    return ModelError(f"the batch does not fit the model: {error}")
