"""What answers a question is looked for before it is planned: in memory, and in what came with it.

In: an `Ask`, and the turn that it is. Out: `Recalled`. Thread: the event loop; searches on threads.
Next: `fitting.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from headrace.conversations import tree
from headrace.conversations.memory.loose import LooseText
from headrace.conversations.memory.values import Recall, Scope, Source
from headrace.conversations.passages import Recalled, passage_text
from headrace.conversations.strategies import Item, Message
from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.retrieval import DEFAULT_K
from headrace.conversations.strategies.values import with_passages
from headrace.conversations.values import Turn
from headrace.errors import ConversationNotFound, DatabaseFailed, ModelError
from headrace.server.contexts import Contexts
from headrace.server.exchange import Exchange
from headrace.server.memories import Memories
from headrace.server.serving import Serving
from headrace.wire.ask import JSON, Ask

_MOST_LOOSE = 256
"""Earlier messages of a question that are looked through: the newest."""


async def recalled(serving: Serving, exchange: Exchange, ask: Ask) -> Recalled:
    """What is found for a question of a server's. Raises as `found_for` does."""
    return await found_for(
        serving.memories,
        serving.contexts,
        ask,
        exchange.tenant,
        exchange.turn.turn if exchange.turn is not None else None,
        timeout_s=serving.settings.retrieval_timeout_s,
    )


async def found_for(
    memories: Memories,
    contexts: Contexts,
    ask: Ask,
    tenant: str,
    kept: Turn | None,
    *,
    timeout_s: float,
) -> Recalled:
    """What is found for a question whose strategy wants that. `kept`: the turn that it is. Raises
    nothing that a question without a memory would not."""
    context = contexts.of(ask)
    if "retrieval" not in (context.strategy, context.fallback) or ask.messages is None:
        return Recalled()
    start = time.perf_counter()
    search = _Search(
        memories,
        tenant,
        question_of(ask.messages),
        # Some that are shown anyway, some that do not fit.
        limit=4 * (context.k or DEFAULT_K),
        timeout_s=timeout_s,
    )
    named = kept.conversation_id if kept is not None else None
    places = {str(index): str(index) for index in range(len(ask.messages))}
    searches = [search.in_texts(_loose_texts(ask, with_messages=named is None))]
    if kept is not None and named is not None:
        places = _places(kept, ask)
        searches.append(search.in_memory(named))
    recall = _merged(await asyncio.gather(*searches), search.limit)
    return Recalled(recall, places, time.perf_counter() - start)


def remember(serving: Serving, exchange: Exchange, ask: Ask) -> None:
    """The turn, once it is kept, where later turns may ask for it."""
    opened = exchange.turn
    named = opened.turn.conversation_id if opened is not None else None
    if opened is None or named is None or serving.contexts.of(ask).strategy != "retrieval":
        return
    scope = Scope(exchange.tenant, named)
    opened.done.add_done_callback(lambda _: serving.memories.remember(scope))


def ask_with_documents(contexts: Contexts, ask: Ask) -> Ask:
    """Where nothing is to be left out, the documents stand in front of the question, whole."""
    if not ask.documents or not ask.messages or contexts.of(ask).strategy == "retrieval":
        return ask
    texts = [
        passage_text(Source("document", document.id or "", document.title), document.text)
        for document in ask.documents
    ]
    passages: list[Message] = [{"role": "user", "content": text} for text in texts]
    history = History.of([Item(message, 0) for message in ask.messages])
    turn = [item.message for item in history.turn]
    before = ask.messages[: len(ask.messages) - len(turn)]
    return replace(ask, messages=(*before, *with_passages(turn, passages)))


def _places(turn: Turn, ask: Ask) -> dict[str, str]:
    """By the ids of kept messages: where they stand in what the model is told. What is kept stands
    together there, in front of what is new."""
    place = ask.place
    first = place.num_passing if place is not None else 0
    told = tree.told(turn.history)
    return {message.id: str(first + index) for index, message in enumerate(told)}


def question_of(messages: Sequence[Mapping[str, JSON]]) -> str:
    """What the user said last."""
    for message in reversed(messages):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            return content
    return ""


def _loose_texts(ask: Ask, *, with_messages: bool) -> list[LooseText]:
    """The documents that came with a question, and its earlier messages where they are kept
    nowhere."""
    texts = [
        LooseText(Source("document", document.id or "", document.title, order), document.text)
        for order, document in enumerate(ask.documents)
    ]
    messages = list(enumerate(ask.messages or ()))[:-1] if with_messages else []
    for index, message in messages[-_MOST_LOOSE:]:
        content, role = message.get("content"), message.get("role")
        if role in ("user", "assistant") and isinstance(content, str):
            texts.append(LooseText(Source("message", str(index), str(role), index), content))
    return texts


@dataclass(frozen=True, slots=True)
class _Search:
    """One question, put to whatever there is."""

    memories: Memories
    tenant: str
    question: str
    limit: int
    timeout_s: float

    async def in_memory(self, conversation: str) -> Recall:
        """In the conversation that is kept under this id."""
        try:
            memory = await self.memories.kept()
            scope = Scope(self.tenant, conversation)
            return await memory.recall(
                scope, self.question, limit=self.limit, timeout_s=self.timeout_s
            )
        except ConversationNotFound:
            return Recall()  # it begins with this turn
        except DatabaseFailed:
            return Recall(missing=("words", "vectors"))

    async def in_texts(self, texts: Sequence[LooseText]) -> Recall:
        """In texts that came with the question; by their words alone where time runs out."""
        if not texts:
            return Recall()
        loose = await self.memories.loose()
        search = partial(loose.recall, self.tenant, texts, self.question, self.limit)
        stop = threading.Event()
        try:
            async with asyncio.timeout(self.timeout_s):
                try:
                    return await self.memories.search(partial(search, stop=stop))
                finally:
                    stop.set()
        except (TimeoutError, ModelError):
            # Quick, and not behind those that embed.
            return await asyncio.to_thread(search, has_time=False)


def _merged(recalls: Sequence[Recall], limit: int) -> Recall:
    """Scores are of ranks, so those of two searches may stand beside each other."""
    found = [one for recall in recalls for one in recall.found]
    missing = dict.fromkeys(name for recall in recalls for name in recall.missing)
    return Recall(
        tuple(sorted(found, key=lambda one: -one.score)[:limit]),
        tuple(missing),
        sum(recall.num_waiting for recall in recalls),
    )
