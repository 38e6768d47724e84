"""Documents on the wire: of a question, as Groq has them, and of a conversation.

In: JSON. Out: `Document`s, or `InvalidRequest`. Next: `server/documents.py`, `chat_request.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON, Document
from headrace.wire.body import BodyLimits
from headrace.wire.fields import Given, Table, Variants, field, ours
from headrace.wire.kinds import Many, Object, Text, Then
from headrace.wire.reading import Path, Reading, spelled

MAX_ID: Final = 128
_NAME: Final = Text(rf"[^\x00-\x1f\x7f/]{{1,{MAX_ID}}}", f"1 to {MAX_ID} characters, none a slash")
_TITLE: Final = Text(r"[^\x00-\x1f\x7f]{1,256}", "1 to 256 characters")
_SAID: Final = Text(r"[\s\S]*\S[\s\S]*", "a text that says something")
_SOURCE: Final = Variants(
    "type",
    {
        "text": Table(field("text", _SAID, note="Plain text, or Markdown.", required=True)),
        "json": Table(field("data", Object(), note="Any object.", required=True)),
    },
)
DOCUMENT: Final = Table(
    field("id", _NAME, note="By which answers and lists name it."),
    field("source", _SOURCE, note="What it says.", required=True),
    ours("title", _TITLE, note="Told to the model and in `sources`."),
)


def _document(given: Given, path: Path, reading: Reading) -> Document:
    source = given["source"]
    text = source["text"] if source["type"] == "text" else _spelled(source["data"])
    return Document(text=text, id=given.get("id"), title=given.get("title", ""))


def _distinct(documents: list[Document], path: Path, reading: Reading) -> tuple[Document, ...]:
    """Each with an id of its own."""
    seen: set[str] = set()
    named = []
    for index, document in enumerate(documents):
        name = document.id or f"document_{index}"
        if name in seen:
            where = spelled((*path, index, "id"))
            raise InvalidRequest(f"`{where}` is that of an earlier document", param=where)
        seen.add(name)
        named.append(Document(text=document.text, id=name, title=document.title))
    return tuple(named)


DOCUMENTS: Final = Then(
    Many(Then(DOCUMENT, _document), "documents", limit="max_documents"), _distinct
)


def parse_document(body: Mapping[str, JSON], limits: BodyLimits) -> Document:
    """One document for a conversation. Raises `InvalidRequest`, naming the field."""
    reading = Reading(limits, strict=False)
    return _document(DOCUMENT.read(body, (), reading), (), reading)


def _spelled(data: dict[str, JSON]) -> str:
    """A value a line, so that it can be cut between them."""
    return orjson.dumps(data, option=orjson.OPT_INDENT_2).decode()
