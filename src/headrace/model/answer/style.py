"""How one model answers: which calls and thoughts it writes, and what a question needs for them.

In: an `Ask`. Out: an `AnswerPlan`: what to hand to the engine, and a parser for each choice.
Thread: any but the event loop's, for questions with tools or a JSON schema; see `AnswerStyle.plan`.
Next: `engine/intake.py`; then `parser.py` for what comes back.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from headrace.errors import InvalidRequest
from headrace.model.answer.calls import CallReader
from headrace.model.answer.formats import ThinkMarkers, ToolFormat, think_markers, tool_format
from headrace.model.answer.messages import (
    Message,
    json_instruction,
    prepared,
    tools_instruction,
    with_instruction,
)
from headrace.model.answer.parser import AnswerParser, Checks
from headrace.model.answer.rules import ANY_OBJECT, CallRule, JSONRule, Rules
from headrace.model.answer.thoughts import ThoughtReader
from headrace.model.answer.validation import CallCheck, Validator
from headrace.model.grammar import CompiledGrammar, GrammarCompiler, Vocabulary
from headrace.model.grammar.schema import checked_text
from headrace.model.grammar.vocabulary import Tokenizer
from headrace.model.prompt import RenderedPrompt
from headrace.wire.ask import Ask, JSONSchema, NamedTool, ReasoningFormat, Tool

_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARS = 9
_MAX_PROBES = 64


class Template(Protocol):
    """What is asked of `headrace.model.template.ChatTemplate`, or of a fake. Its `source` is read
    where it has one."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> RenderedPrompt: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What one question needs: fields for `engine.Request`, and parsers for its choices."""

    messages: tuple[Message, ...] | None
    """None where the question has none (`/completions`)."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """For the chat template, as on the wire."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    grammar: CompiledGrammar | None = None
    visible_tokens: Mapping[int, bytes] = field(default_factory=dict)
    """Control tokens whose spelling is text in this answer, so that the parser can read it."""
    make_parser: Callable[[int, str], AnswerParser] | None = None
    """(choice, id seed) → parser; None: what the engine says goes out as it is."""

    def parser(self, choice: int, id_seed: str = "") -> AnswerParser | None:
        """The parser of one choice; None where the engine's events need no reading. Equal
        `id_seed`s give equal ids of calls; an empty one random ids."""
        return None if self.make_parser is None else self.make_parser(choice, id_seed)


class AnswerStyle:
    """One model's; make it with `for_model`. Usable from any thread."""

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        form: ToolFormat,
        thinks: ThinkMarkers | None,
        *,
        has_system: bool,
    ) -> None:
        self.format = form
        self.thinks = thinks
        self._template = template
        self._has_system = has_system
        self._visible = _visible(tokenizer, form, thinks)
        self._compiler = GrammarCompiler(Vocabulary(tokenizer, self._visible))
        self._lock = threading.Lock()
        self._opened: dict[str, bool] = {}

    @classmethod
    def for_model(cls, template: Template, tokenizer: Tokenizer) -> AnswerStyle:
        """The style that a chat template and a vocabulary show."""
        source = getattr(template, "source", "")
        return cls(
            template,
            tokenizer,
            tool_format(source),
            think_markers(source, frozenset(tokenizer.control_tokens)),
            has_system=not source or ("system" in source and "ystem role not" not in source),
        )

    def warm_up(self) -> None:
        """Make what grammars need, some tenths of a second, so that no question waits for it."""
        self._compiler.warm_up()

    def needs_time(self, ask: Ask) -> bool:
        """Whether `plan` may take more than a moment, so that it should leave the event loop."""
        return bool(ask.tools) or ask.response_format is not None

    def plan(self, ask: Ask) -> AnswerPlan:
        """What `ask` needs. A few milliseconds for a new schema or set of tools, some tenths of a
        second for a huge one or for the very first; next to nothing for plain questions.

        Raises `InvalidRequest` for a tool or schema that cannot be followed, naming the field, and
        what the chat template raises.
        """
        tools = _offered(ask)
        if ask.messages is None and not tools and ask.response_format is None:
            return AnswerPlan(messages=None, template_variables=ask.template_variables)
        variables = self._variables(ask)
        is_thinking = self._is_thinking(ask, variables)
        for tool in tools:
            checked_text(tool.parameters or ANY_OBJECT, _tool_param(ask, tool))
        calls, wished = _call_check(ask, tools), _wished(ask)
        grammar = self._grammar(ask, tools, wished, is_thinking)
        checks = _checks(ask, calls, wished, grammar)
        make_parser = self._make_parser(ask, checks, is_thinking, has_tools=bool(tools))
        return AnswerPlan(
            messages=self._messages(ask, tools),
            tools=self._shown_tools(tools),
            template_variables=variables,
            grammar=None if grammar is None else grammar.compiled,
            visible_tokens=self._visible if grammar or make_parser else {},
            make_parser=make_parser,
        )

    def shown(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as the chat template is given them: calls and their results as it knows
        them. A message becomes one message, whatever the others are."""
        return prepared(messages, self.format)

    def frame(self, ask: Ask) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
        """What the chat template is given for `ask`, which has messages: these, with all that they
        are told beside them, and tools."""
        tools = _offered(ask)
        return self._messages(ask, tools) or (), self._shown_tools(tools)

    def variables(self, ask: Ask) -> Mapping[str, Any]:
        """What else the chat template reads."""
        return self._variables(ask)

    def _shown_tools(self, tools: Sequence[Tool]) -> tuple[Mapping[str, Any], ...]:
        return tuple(tool.as_wire() for tool in tools) if self.format.in_template else ()

    def _variables(self, ask: Ask) -> Mapping[str, Any]:
        effort = ask.reasoning_effort
        if effort is None or self.thinks is None:
            return ask.template_variables
        asked: dict[str, Any] = {"enable_thinking": effort != "none"}
        if effort not in ("none", "default"):
            asked |= {"reasoning_effort": effort}
        return {**asked, **ask.template_variables}

    def _is_thinking(self, ask: Ask, variables: Mapping[str, Any]) -> bool:
        """Whether the prompt ends inside the thoughts."""
        if self.thinks is None or ask.messages is None:
            return False
        begun = _prefill(ask)
        if begun.strip():
            return self.thinks.opening in begun and self.thinks.closing not in begun
        key = json.dumps(variables, sort_keys=True, default=str)
        with self._lock:
            known = self._opened.get(key)
        if known is None:
            known = self._opens_thoughts(self.thinks, variables)
            with self._lock:
                if len(self._opened) >= _MAX_PROBES:
                    self._opened.clear()
                self._opened[key] = known
        return known

    def _opens_thoughts(self, markers: ThinkMarkers, variables: Mapping[str, Any]) -> bool:
        """Whether the template itself begins the thoughts of an answer."""
        prompt = self._template.render([{"role": "user", "content": "."}], **variables)
        return prompt.text.rstrip().endswith(markers.opening)

    def _messages(self, ask: Ask, tools: Sequence[Tool]) -> tuple[Message, ...] | None:
        if ask.messages is None:
            return None
        messages = prepared(ask.messages, self.format)
        instructions = []
        if tools and not self.format.in_template:
            instructions.append(tools_instruction(tools, must_call=_must_call(ask)))
        if isinstance(ask.response_format, JSONSchema):
            instructions.append(json_instruction(ask.response_format.schema) or "")
        text = "\n\n".join(filter(None, instructions))
        if text and messages:
            messages = with_instruction(messages, text, has_system=self._has_system)
        return tuple(messages)

    def _grammar(
        self, ask: Ask, tools: Sequence[Tool], wished: _Wished | None, is_thinking: bool
    ) -> _Grammar | None:
        if not tools and wished is None:
            return None
        rules = Rules(
            form=self.format,
            calls=[_call_rule(tool) for tool in tools],
            json=None if wished is None or _must_call(ask) else wished.rule,
            allows_text=wished is None and not _must_call(ask),
            allows_several=ask.parallel_tool_calls and not isinstance(ask.tool_choice, NamedTool),
            thinks=self.thinks,
            is_thinking=is_thinking,
        )
        grammar = self._compiled(rules, "tools" if wished is None else wished.param)
        if wished is not None and not tools and (begun := _prefill(ask)):
            # The answer goes on from where the JSON was; other text before it is no part of it.
            further = grammar.compiled.after(begun)
            return grammar if further is None else replace(grammar, compiled=further, begun=begun)
        return grammar

    def _compiled(self, rules: Rules, param: str) -> _Grammar:
        """To the letter where the library can; else as near as it can, where that is enough."""
        try:
            return _Grammar(self._compiler.compile(rules.text, param), is_exact=True)
        except InvalidRequest:
            rules = replace(rules, is_lenient=True)
        try:
            compiled = self._compiler.compile(rules.text, param)
        except InvalidRequest:
            compiled = self._compiler.compile(rules.simpler().text, param)
        return _Grammar(compiled, is_exact=False)

    def _make_parser(
        self, ask: Ask, checks: Checks, is_thinking: bool, *, has_tools: bool
    ) -> Callable[[int, str], AnswerParser] | None:
        shown = _reasoning_format(ask)
        parts_thoughts = self.thinks is not None and shown != "raw"
        opening = ""
        if self.thinks is not None and not parts_thoughts and is_thinking and not _prefill(ask):
            opening = f"{self.thinks.opening}\n"
        if not (parts_thoughts or has_tools or opening or checks.must_be_json):
            return None

        def make(choice: int, id_seed: str) -> AnswerParser:
            thinks = self.thinks if parts_thoughts else None
            return AnswerParser(
                choice,
                thoughts=None if thinks is None else ThoughtReader(thinks, is_open=is_thinking),
                calls=CallReader(self.format) if has_tools else None,
                checks=checks,
                make_id=lambda index: _call_id(id_seed, choice, index),
                shows_thoughts=shown != "hidden",
                opening=opening,
            )

        return make


@dataclass(frozen=True, slots=True)
class _Wished:
    """The JSON that was asked for."""

    rule: JSONRule
    param: str
    validator: Validator | None


@dataclass(frozen=True, slots=True)
class _Grammar:
    compiled: CompiledGrammar
    is_exact: bool
    """All that it allows satisfies the schemas."""
    begun: str = ""
    """What was said already of what it describes."""


def _offered(ask: Ask) -> tuple[Tool, ...]:
    """The tools that may be called."""
    choice = ask.tool_choice
    if isinstance(choice, NamedTool):
        named = tuple(tool for tool in ask.tools if tool.name == choice.name)
        if not named:
            raise InvalidRequest("requested tool does not exist", param="tool_choice")
        return named
    return () if choice == "none" else ask.tools


def _must_call(ask: Ask) -> bool:
    is_forced = ask.tool_choice == "required" or isinstance(ask.tool_choice, NamedTool)
    return is_forced and bool(ask.tools)


def _call_rule(tool: Tool) -> CallRule:
    parameters = ANY_OBJECT if tool.parameters is None else tool.parameters
    return CallRule(tool.name, JSONRule(parameters, tool.strict))


def _wished(ask: Ask) -> _Wished | None:
    form = ask.response_format
    if form is None:
        return None
    if not isinstance(form, JSONSchema):
        return _Wished(JSONRule(ANY_OBJECT), "response_format", None)
    param = "response_format.json_schema.schema"
    checked_text(form.schema, param)
    validator = Validator(form.schema, param, f"response_format: '{form.name}'")
    return _Wished(JSONRule(form.schema, form.strict), param, validator)


def _call_check(ask: Ask, tools: Sequence[Tool]) -> CallCheck | None:
    """What calls are held against; None where nobody wants that."""
    if not tools or ask.disable_tool_validation:
        return None
    return CallCheck({tool.name: _arguments_validator(ask, tool) for tool in tools})


def _arguments_validator(ask: Ask, tool: Tool) -> Validator:
    schema = ANY_OBJECT if tool.parameters is None else tool.parameters
    param = _tool_param(ask, tool)
    return Validator(schema, param, f"tool {tool.name}, {param}")


def _tool_param(ask: Ask, tool: Tool) -> str:
    return f"tools[{ask.tools.index(tool)}].function.parameters"


def _checks(
    ask: Ask, calls: CallCheck | None, wished: _Wished | None, grammar: _Grammar | None
) -> Checks:
    """What the grammar does not vouch for."""
    is_exact = grammar is not None and grammar.is_exact
    must_call = _must_call(ask)
    return Checks(
        calls,
        must_call=must_call,
        # A stop string may end the JSON wherever it likes.
        must_be_json=wished is not None and not (is_exact or must_call or ask.stop),
        json=None if wished is None else wished.validator,
        json_begun="" if grammar is None else grammar.begun,
    )


def _reasoning_format(ask: Ask) -> ReasoningFormat:
    if not ask.include_reasoning:
        return "hidden"
    is_structured = bool(_offered(ask)) or ask.response_format is not None
    if ask.reasoning_format in (None, "raw"):
        # Thoughts inside JSON or beside calls would break whoever reads those.
        return "parsed" if is_structured else "raw"
    assert ask.reasoning_format is not None  # narrowed just above
    return ask.reasoning_format


def _prefill(ask: Ask) -> str:
    """The answer's beginning, where the question brings one."""
    if not ask.continues or not ask.messages:
        return ""
    content = ask.messages[-1].get("content")
    return content if isinstance(content, str) else ""


def _visible(
    tokenizer: Tokenizer, form: ToolFormat, thinks: ThinkMarkers | None
) -> Mapping[int, bytes]:
    markers = {form.opening, form.closing}
    if thinks is not None:
        markers |= {thinks.opening, thinks.closing}
    return {
        token: spelling.encode()
        for spelling, token in tokenizer.control_tokens.items()
        if spelling in markers and token not in tokenizer.eog_ids
    }


def _call_id(id_seed: str, choice: int, index: int) -> str:
    """Nine letters and digits, as Groq's and as Mistral's templates want them."""
    seed = id_seed or secrets.token_hex(16)
    number = int.from_bytes(hashlib.sha256(f"{seed}/{choice}/{index}".encode()).digest()[:16])
    digits = []
    for _ in range(_ID_CHARS):
        number, digit = divmod(number, len(_ID_ALPHABET))
        digits.append(_ID_ALPHABET[digit])
    return "".join(digits)
