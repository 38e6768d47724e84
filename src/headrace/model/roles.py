"""Which tensor of a GGUF file plays which role in its model.

In: a checked `GGUFFile`, and its `Hyperparameters`. Out: `ModelTensors`. Each has the type and the
shape that those ask for; a tensor without a role is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from headrace.model.architecture import (
    EMBEDDING_NAME,
    FAMILIES,
    HEAD_NAME,
    ROPE_FACTORS_NAME,
    SUPPORTED_TEXT,
    Hyperparameters,
)
from headrace.model.gguf import COMPUTABLE_TYPES, GGMLType, GGUFFile, TensorInfo, tensor_part

Shape = tuple[int, ...]

_HARMLESS = re.compile(r"blk\.\d+\.(attn_rot_embd|attn\.rotary_emb\.inv_freq)(\.weight)?")


@dataclass(frozen=True)
class LayerTensors:
    """One layer. Matrices are (outputs, inputs), of a computable type; vectors are F32."""

    attn_norm: TensorInfo
    q: TensorInfo
    k: TensorInfo
    v: TensorInfo
    o: TensorInfo
    ffn_norm: TensorInfo
    gate: TensorInfo
    up: TensorInfo
    down: TensorInfo
    q_bias: TensorInfo | None = None
    k_bias: TensorInfo | None = None
    v_bias: TensorInfo | None = None
    q_norm: TensorInfo | None = None
    k_norm: TensorInfo | None = None


@dataclass(frozen=True)
class ModelTensors:
    """Every tensor by its role. A tied `output_head` is `token_embedding` itself."""

    token_embedding: TensorInfo
    output_norm: TensorInfo
    output_head: TensorInfo
    layers: tuple[LayerTensors, ...]

    def by_role(self) -> Iterator[tuple[str, int | None, TensorInfo]]:
        """(role, layer, tensor) for all; layer is None outside the layers. The role of a field is
        its name. A tied head comes twice, under both its roles."""
        yield "token_embedding", None, self.token_embedding
        for index, layer in enumerate(self.layers):
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    yield field.name, index, tensor
        yield "output_norm", None, self.output_norm
        yield "output_head", None, self.output_head


def layout(gguf: GGUFFile, hyper: Hyperparameters) -> ModelTensors:
    """The role of every tensor in `gguf`, each with the type and shape that `hyper` asks for.

    Raises InvalidModelFile for a missing tensor or a wrong shape, and UnsupportedModel for a type
    that is not computed with or a tensor that has no role.
    """
    roles = _Roles(gguf)
    embedding = roles.matrix(EMBEDDING_NAME, (hyper.vocab_size, hyper.hidden_size))
    head = embedding
    if not hyper.tied_head:
        head = roles.matrix(HEAD_NAME, (hyper.vocab_size, hyper.hidden_size))
    output_norm = roles.vector("output_norm.weight", (hyper.hidden_size,))
    if FAMILIES[hyper.architecture].has_rope_factors and ROPE_FACTORS_NAME in gguf.tensors:
        roles.vector(ROPE_FACTORS_NAME, (hyper.rope_dim // 2,))
    layers = tuple(_layer(roles, index, hyper) for index in range(hyper.num_layers))
    roles.reject_leftovers()
    return ModelTensors(embedding, output_norm, head, layers)


def _layer(roles: _Roles, index: int, hyper: Hyperparameters) -> LayerTensors:
    hidden, ffn, head = (hyper.hidden_size,), (hyper.ffn_size,), (hyper.head_dim,)
    queries = (hyper.num_heads * hyper.head_dim,)
    keys = (hyper.num_kv_heads * hyper.head_dim,)
    prefix = f"blk.{index}"
    bias, norm = {}, {}
    if hyper.has_qkv_bias:
        bias["q_bias"] = roles.vector(f"{prefix}.attn_q.bias", queries)
        bias["k_bias"] = roles.vector(f"{prefix}.attn_k.bias", keys)
        bias["v_bias"] = roles.vector(f"{prefix}.attn_v.bias", keys)
    if hyper.has_qk_norm:
        norm["q_norm"] = roles.vector(f"{prefix}.attn_q_norm.weight", head)
        norm["k_norm"] = roles.vector(f"{prefix}.attn_k_norm.weight", head)
    return LayerTensors(
        attn_norm=roles.vector(f"{prefix}.attn_norm.weight", hidden),
        q=roles.matrix(f"{prefix}.attn_q.weight", queries + hidden),
        k=roles.matrix(f"{prefix}.attn_k.weight", keys + hidden),
        v=roles.matrix(f"{prefix}.attn_v.weight", keys + hidden),
        o=roles.matrix(f"{prefix}.attn_output.weight", hidden + queries),
        ffn_norm=roles.vector(f"{prefix}.ffn_norm.weight", hidden),
        gate=roles.matrix(f"{prefix}.ffn_gate.weight", ffn + hidden),
        up=roles.matrix(f"{prefix}.ffn_up.weight", ffn + hidden),
        down=roles.matrix(f"{prefix}.ffn_down.weight", hidden + ffn),
        **bias,
        **norm,
    )


class _Roles:
    """Hands out the file's tensors, and knows which ones nobody has asked for."""

    def __init__(self, gguf: GGUFFile) -> None:
        self._gguf = gguf
        self._left = dict(gguf.tensors)

    def matrix(self, name: str, shape: Shape) -> TensorInfo:
        return self._take(name, shape, COMPUTABLE_TYPES)

    def vector(self, name: str, shape: Shape) -> TensorInfo:
        return self._take(name, shape, (GGMLType.F32,))

    def reject_leftovers(self) -> None:
        left = [name for name in self._left if not _HARMLESS.fullmatch(name)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise self._gguf.unsupported(
                f"{tensor_part(left[0])}{more}",
                f"a dense {self._gguf.architecture} model as computed here has no use for it; "
                f"{SUPPORTED_TEXT}",
            )

    def _take(self, name: str, shape: Shape, types: tuple[GGMLType, ...]) -> TensorInfo:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise self._gguf.invalid(tensor_part(name), "is missing; fetch the model anew")
        self._gguf.check_tensor(tensor, shape, types)
        return tensor
