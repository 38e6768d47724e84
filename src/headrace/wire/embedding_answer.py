"""The body of an answer to `POST /embeddings`.

In: vectors. Out: bytes. Thread: any; many vectors take some milliseconds.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from headrace.wire.ask import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def embedding_body(
    model: str,
    vectors: NDArray[np.float32],
    num_tokens: int,
    *,
    is_base64: bool,
    truncated: Sequence[int] = (),
) -> bytes:
    """`vectors`: float32, one row a text, in the order of the texts. `truncated`: which texts were
    cut; said in a field of ours, where there are any."""
    answer: dict[str, JSON] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(row, is_base64)}
            for i, row in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    if truncated:
        answer["x_headrace"] = {"truncated": list(truncated)}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _written(row: NDArray[np.float32], is_base64: bool) -> JSON:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if is_base64 else row
