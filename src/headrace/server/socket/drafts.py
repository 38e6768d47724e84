"""Questions that are still being typed or spoken: what is known of each, until it is asked.

In: texts and fields, piece by piece. Out: a `Question`. Thread: the event loop.
Next: `ahead.py` while one grows, `answer.py` when it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from headrace.errors import BodyTooLarge, InvalidRequest
from headrace.server.serving import Serving
from headrace.server.socket.ahead import Ahead
from headrace.server.socket.caller import Caller
from headrace.wire.ask import JSON
from headrace.wire.json_bytes import compact
from headrace.wire.socket_frames import Append, Commit, Question, question


class Draft:
    """Fields of a request's body, and the text of its last message."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of text and fields together, as of any request."""
        self._max_bytes = max_bytes
        self._fields: dict[str, JSON] = {}
        self._num_field_bytes = 0
        self._parts: list[str] = []
        self._num_text_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_field_bytes + self._num_text_bytes

    @property
    def text(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def grow(self, text: str, fields: Mapping[str, JSON]) -> None:
        """Raises `BodyTooLarge` where no request may be as large."""
        if text:
            self._parts.append(text)
            self._num_text_bytes += len(text.encode())
        if fields:
            self._fields |= fields
            self._num_field_bytes = len(compact(self._fields))
        if self.num_bytes > self._max_bytes:
            raise BodyTooLarge(
                f"the input became larger than {self._max_bytes:,} bytes and is forgotten; send a "
                "shorter one"
            )

    def clear(self) -> None:
        """Forget the text."""
        self._parts.clear()
        self._num_text_bytes = 0

    def body(self, text: str) -> Mapping[str, JSON]:
        """Of its request, if `text` were all of the last message; without text there is none."""
        before = self._fields.get("messages", [])
        if not text or not isinstance(before, list):
            return self._fields
        return {**self._fields, "messages": [*before, {"role": "user", "content": text}]}


class Drafts:
    """Those of one socket, by the ids of the questions that they will be."""

    def __init__(self, serving: Serving, caller: Caller) -> None:
        self._serving = serving
        self._caller = caller
        self._open: dict[str, tuple[Draft, Ahead]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Of whoever computes ahead, maybe for a question that has been asked meanwhile."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, answer_id: str) -> bool:
        return answer_id in self._open

    def append(self, answer_id: str, more: Append) -> None:
        """Begin a draft, or go on with it. One that becomes too large is forgotten.

        Raises `AuthenticationFailed`, `BodyTooLarge` and `InvalidRequest`.
        """
        if answer_id in self._open:
            if more.fields:
                raise InvalidRequest(
                    "only the first `input.append` and `input.commit` may have more than `text`",
                    param=next(iter(more.fields)),
                )
        else:
            self._caller.tenant()
            self._begin(answer_id)
        draft, ahead = self._open[answer_id]
        try:
            draft.grow(more.text, more.fields)
        except BodyTooLarge:
            self.drop(answer_id)
            raise
        ahead.look()

    def clear(self, answer_id: str) -> None:
        """What was appended was not meant; a draft that is not there is empty already."""
        if answer_id in self._open:
            draft, ahead = self._open[answer_id]
            draft.clear()
            ahead.turn_back()

    def commit(self, answer_id: str, last: Commit) -> Question:
        """The question that it became. Its id is free. Raises `BodyTooLarge`, `InvalidRequest`."""
        if answer_id not in self._open:
            self._begin(answer_id)
        draft, ahead = self._open.pop(answer_id)
        # What is computed now, the answer needs.
        ahead.stop()
        draft.grow(last.text, last.fields)
        return question(draft.body(draft.text))

    def drop(self, answer_id: str) -> None:
        """It will not be asked."""
        if answer_id in self._open:
            _, ahead = self._open.pop(answer_id)
            ahead.abandon()

    def leave(self) -> set[asyncio.Task[None]]:
        """Nobody is there any more. When the tasks have ended, nothing is computed for them."""
        for answer_id in list(self._open):
            self.drop(answer_id)
        for task in self._tasks:
            task.cancel()
        return set(self._tasks)

    def _begin(self, answer_id: str) -> None:
        draft = Draft(self._serving.settings.max_body_bytes)
        self._open[answer_id] = draft, Ahead(self._serving, self._caller, draft, self._tasks)
