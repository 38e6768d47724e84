"""`POST /embeddings`: texts in, vectors out, slice by slice beside the streams.

In: a request. Out: a JSON body. Thread: the event loop; vectors are computed on a thread of their
own. Next: `embedders.py`.

A request's texts go to that thread a slice at a time, and each slice stands behind those of other
requests: nobody waits for more than one slice of each. While answers are streamed, embedding rests
after each slice for as long as it took. When the client leaves, the next slice is not computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headrace.errors import InvalidRequest
from headrace.events import Usage
from headrace.model.embedding.slices import slices
from headrace.server.body import read_body
from headrace.server.exchange import Exchange, exchange_of
from headrace.server.limits import Permit
from headrace.server.serving import Serving
from headrace.server.sse import left
from headrace.wire.body import parse_body
from headrace.wire.embedding_answer import embedding_body
from headrace.wire.embedding_request import EmbeddingAsk, parse_embedding

if TYPE_CHECKING:
    from headrace.model.embedder import Embedded, Embedder, Vectors

SLICE_CHARS = 2048
"""About 500 tokens: some tens of milliseconds of all cores."""
_CHARS_PER_TOKEN = 4
_NUM_MARKERS = 2
_MOST_REST_S = 0.25


async def embed(request: Request, serving: Serving) -> Response:
    """Answer one request. Raises what refuses it."""
    exchange = exchange_of(request.scope)
    exchange.tenant = serving.access.authenticate(request.scope["headers"]).id
    raw = await read_body(request.scope, request.receive, serving.settings.max_body_bytes)
    ask = parse_embedding(
        parse_body(raw, serving.body_limits), serving.body_limits, strict=serving.settings.strict
    )
    exchange.model = ask.model
    exchange.ignored += ask.ignored
    exchange.served_by = serving.embedders.check_name(ask.model)
    with serving.open():
        embedder = await serving.embedders.get()
        _check_dimensions(ask, embedder)
        gone = asyncio.ensure_future(left(request.receive))
        try:
            body = await _Embedding(serving, exchange, ask, embedder, gone).run()
        finally:
            gone.cancel()
    return Response(body, media_type="application/json")


class _Embedding:
    """One request's texts on their way to vectors."""

    def __init__(
        self,
        serving: Serving,
        exchange: Exchange,
        ask: EmbeddingAsk,
        embedder: Embedder,
        gone: asyncio.Future[None],
    ) -> None:
        self._serving = serving
        self._exchange = exchange
        self._ask = ask
        self._embedder = embedder
        self._gone = gone
        self._done: list[Embedded] = []

    async def run(self) -> bytes:
        """Raises `RateLimited` before anything is computed, `ClientDisconnect` when there is nobody
        left to compute for."""
        permit = await self._admit()
        try:
            for start, end in slices([len(text) for text in self._ask.texts], SLICE_CHARS):
                await self._embed(self._ask.texts[start:end])
        finally:
            num_tokens = sum(each.num_tokens for each in self._done)
            self._exchange.usage = Usage(num_tokens, 0, 0)
            permit.settle(num_tokens, 0, 0)
            self._exchange.headers += self._serving.limit_headers(
                self._exchange.tenant, self._ask.model
            )
        return await self._serving.embedders.run(partial(_body, self._ask, self._done))

    async def _admit(self) -> Permit:
        num_tokens = sum(_estimated_tokens(text, self._embedder) for text in self._ask.texts)
        try:
            return await self._serving.admit(
                self._exchange.tenant, self._ask.model, num_tokens, None, "on_demand"
            )
        except BaseException:
            self._exchange.headers += self._serving.limit_headers(
                self._exchange.tenant, self._ask.model
            )
            raise

    async def _embed(self, texts: Sequence[str]) -> None:
        if self._gone.done():
            self._exchange.has_left = True
            raise ClientDisconnect
        began_at = time.perf_counter()
        self._done.append(await self._serving.embedders.run(partial(self._embedder.embed, texts)))
        if self._serving.is_streaming:
            await asyncio.sleep(min(time.perf_counter() - began_at, _MOST_REST_S))


def _estimated_tokens(text: str, embedder: Embedder) -> int:
    return min(len(text) // _CHARS_PER_TOKEN + _NUM_MARKERS, embedder.max_tokens)


def _check_dimensions(ask: EmbeddingAsk, embedder: Embedder) -> None:
    if ask.dimensions is not None and ask.dimensions > embedder.dim:
        raise InvalidRequest(
            f"`dimensions` must be at most {embedder.dim}, the length of this model's vectors, not "
            f"{ask.dimensions}",
            param="dimensions",
        )


def _body(ask: EmbeddingAsk, parts: Sequence[Embedded]) -> bytes:
    import numpy as np

    vectors = np.concatenate([part.vectors for part in parts])
    truncated: list[int] = []
    num_before = 0
    for part in parts:
        truncated += (num_before + i for i in part.truncated)
        num_before += len(part.vectors)
    return embedding_body(
        ask.model,
        _shortened(vectors, ask.dimensions),
        sum(part.num_tokens for part in parts),
        is_base64=ask.is_base64,
        truncated=truncated,
    )


def _shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first numbers of each vector, made to length 1 again."""
    import numpy as np

    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(lengths == 0, 1, lengths), np.float32)
