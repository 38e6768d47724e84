"""`POST /embeddings`: texts that are to become vectors.

In: a JSON object. Out: an `EmbeddingAsk`, or `InvalidRequest`. Thread: the event loop.
Next: `server/embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits
from headrace.wire.common_fields import MODEL, USER
from headrace.wire.fields import Table, field, ours
from headrace.wire.kinds import ByType, Many, OneOf, Whole
from headrace.wire.reading import Path, Reading, spelled


@dataclass(frozen=True, slots=True)
class EmbeddingAsk:
    """What a client wants to have embedded, and how it wants the vectors."""

    model: str
    texts: tuple[str, ...]
    is_base64: bool = False
    """Vectors as little-endian float32 in base64, not as lists of numbers."""
    dimensions: int | None = None
    """Only so many numbers of each vector, made to length 1 again; None: all."""
    ignored: tuple[str, ...] = ()
    """Paths of what was sent and has no effect."""


class _Filled:
    """A text that is not empty."""

    def read(self, value: JSON, path: Path, reading: Reading) -> str:
        if not isinstance(value, str) or not value:
            raise reading.wrong(path, value, "a string that is not empty")
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "string", "minLength": 1}


class _Texts:
    """A list of texts."""

    _texts = Many(_Filled(), "texts", least=1, limit="max_inputs")

    def read(self, value: list[JSON], path: Path, reading: Reading) -> list[str]:
        first = value[0] if value else ""
        if isinstance(first, int | list) and not isinstance(first, bool):
            name = spelled(path)
            raise InvalidRequest(
                f"`{name}` holds token ids, which belong to another model's vocabulary; send texts "
                "(LangChain sends them with `check_embedding_ctx_length=False`)",
                param=name,
            )
        return self._texts.read(value, path, reading)

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return self._texts.schema(limits)


EMBEDDING: Final = Table(
    MODEL,
    field(
        "input",
        ByType({str: _Filled(), list: _Texts()}, "a string or a list of strings"),
        note="Each text becomes one vector. A text of more tokens than the model reads is cut.",
        required=True,
    ),
    field(
        "encoding_format",
        OneOf("float", "base64"),
        note="`base64`: little-endian float32, a quarter as long.",
    ),
    ours(
        "dimensions",
        Whole(1),
        note="Only so many numbers of each vector, made to length 1 again.",
    ),
    USER,
)


def parse_embedding(
    body: Mapping[str, JSON], limits: BodyLimits, *, strict: bool = False
) -> EmbeddingAsk:
    """What `body` asks for. Raises `InvalidRequest`, naming the field."""
    reading = Reading(limits, strict=strict)
    given = EMBEDDING.read(body, (), reading)
    texts = given["input"]
    return EmbeddingAsk(
        model=given["model"],
        texts=(texts,) if isinstance(texts, str) else tuple(texts),
        is_base64=given.get("encoding_format") == "base64",
        dimensions=given.get("dimensions"),
        ignored=reading.ignored,
    )
