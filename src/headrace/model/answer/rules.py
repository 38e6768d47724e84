"""What an answer may look like, as rules for the grammar library.

In: tools, a wished-for JSON and a family's formats. Out: rules (Lark, the library's dialect).
Next: `model/grammar/compiler.py`.

    start: thoughts, then
        text                           nothing is asked: no rules at all
        text or calls                  tools, `auto`: free until a call begins, then its schema's
        calls                          tools, `required` or one by name
        JSON                           `response_format`
        JSON or calls                  both
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.model.answer.formats import ThinkMarkers, ToolFormat
from headrace.model.grammar.compiler import as_rule
from headrace.model.grammar.schema import Schema, moved, without_patterns

MAX_CALLS = 8
"""In one answer: a model that repeats itself must come to an end."""

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class JSONRule:
    """A JSON value that may stand in an answer."""

    schema: Schema
    is_strict: bool = False
    """The schema must be followed to the letter, or be refused."""

    def rule(self, *, is_lenient: bool) -> str:
        return as_rule(self.schema, is_lenient=is_lenient and not self.is_strict)

    def simpler(self) -> JSONRule:
        return self if self.is_strict else JSONRule(without_patterns(self.schema))


@dataclass(frozen=True, slots=True)
class CallRule:
    """A tool that may be called."""

    name: str
    arguments: JSONRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What an answer may be; see `text`."""

    form: ToolFormat
    calls: Sequence[CallRule] = ()
    """Empty: no calls."""
    json: JSONRule | None = None
    """None: no JSON."""
    allows_text: bool = False
    allows_several: bool = False
    """Calls in one answer."""
    thinks: ThinkMarkers | None = None
    is_thinking: bool = False
    """The prompt ends inside the thoughts."""
    is_lenient: bool = False
    """What the library does not know of the schemas is left out, where they are not strict."""

    def simpler(self) -> Rules:
        """Without regular expressions, where the schemas are not strict."""
        calls = [CallRule(call.name, call.arguments.simpler()) for call in self.calls]
        return replace(self, calls=calls, json=self.json and self.json.simpler())

    @property
    def text(self) -> str:
        """As the library reads them."""
        lines = [f"start: {self._thoughts()}answer", *_COMMON]
        if self.thinks is not None:
            lines += _thought_lines(self.thinks, self.is_thinking)
        lines += self._answer_lines()
        return "\n".join(lines) + "\n"

    def _thoughts(self) -> str:
        if self.thinks is None:
            return ""
        return "thoughts SPACES? " if self.is_thinking else "(thoughts SPACES?)? "

    def _answer_lines(self) -> list[str]:
        if self.json is not None and self.calls and not self.form.needs_opening:
            return [f"answer: {self._union(self.json).rule(is_lenient=self.is_lenient)}"]
        alternatives = []
        lines = []
        if self.json is not None:
            alternatives.append("value")
            lines.append(f"value: {self.json.rule(is_lenient=self.is_lenient)}")
        if self.calls:
            alternatives.append("calls")
            lines += self._call_lines()
        if self.allows_text:
            alternatives.append("TEXT")
        return [f"answer: {' | '.join(alternatives)}", *lines]

    def _union(self, value: JSONRule) -> JSONRule:
        """JSON or a bare call, which both begin with a brace, as one schema."""
        key = self.form.arguments
        parts: list[Schema] = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": call.name},
                    key: moved(call.arguments.schema, f"/anyOf/{index}/properties/{key}"),
                },
                "required": ["name", key],
                "additionalProperties": False,
            }
            for index, call in enumerate(self.calls)
        ]
        parts.append(moved(value.schema, f"/anyOf/{len(parts)}"))
        return JSONRule({"anyOf": parts}, value.is_strict)

    def _call_lines(self) -> list[str]:
        lines = [
            f"call: {' | '.join(f'call_{index}' for index in range(len(self.calls)))}",
            *(line for index, call in enumerate(self.calls) for line in self._one(index, call)),
        ]
        form = self.form
        if form.is_list:
            lines.append(f'body: SPACES? "[" SPACES? call {self._more("/, ?/ call")} SPACES? "]"')
        elif form.closing:
            more = self._more(f"SPACES {json.dumps(form.opening)} one")
            lines.append(f"body: one {more}")
            lines.append(f"one: SPACES? call SPACES? {json.dumps(form.closing)}")
        else:
            lines.append("body: call")
        return lines + self._opening_lines()

    def _more(self, what: str) -> str:
        return f"({what}){{0,{MAX_CALLS - 1}}}" if self.allows_several else ""

    def _opening_lines(self) -> list[str]:
        """How a call begins. Free text ends where one does: the head is lazy, so that it wins."""
        form = self.form
        opening = json.dumps(form.opening)
        if not form.needs_opening:
            start = rf"[ \n]{{0,4}}({_regex(form.opening)}|\{{ ?\"name)(.|\n)*"
            return ["calls: body", f"TEXT: FREE & ~/{start}/"]
        if not self.allows_text:
            return [f"calls: {opening} body"]
        return ["calls: head body", f"head[lazy]: TEXT {opening}", f"TEXT: {self._free()}"]

    def _free(self) -> str:
        if self.thinks is None or self.is_thinking:
            return "FREE"
        # Text that begins with thoughts would hide from the rules what comes after them.
        return rf"FREE & ~/[ \n]{{0,4}}{_regex(self.thinks.opening)}(.|\n)*/"

    def _one(self, index: int, call: CallRule) -> list[str]:
        name = _regex(json.dumps(call.name))
        opening = (
            "" if self.form.needs_opening else rf"[ \n]{{0,4}}({_regex(self.form.opening)})? ?"
        )
        head = rf'{opening}\{{ ?"name": ?{name}, ?"{self.form.arguments}": ?'
        arguments = call.arguments.rule(is_lenient=self.is_lenient)
        return [
            f"call_{index}: HEAD_{index} arguments_{index} / ?}}/",
            f"arguments_{index}: {arguments}",
            f"HEAD_{index}: /{head}/",
        ]


_COMMON = (r"FREE: /(.|\n)*/", r"SPACES: /[ \n]{1,4}/")


def _thought_lines(markers: ThinkMarkers, is_open: bool) -> list[str]:
    opening = "" if is_open else rf"[ \n]{{0,4}}{_regex(markers.opening)}"
    return [rf"thoughts[lazy]: /{opening}(.|\n)*{_regex(markers.closing)}/"]


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
