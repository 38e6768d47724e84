"""The chat template of a model: messages in, a prompt out.

In: messages, tools and variables, as plain values. Out: a `RenderedPrompt`.
Thread: any; nothing changes after construction. Next: `Tokenizer.encode_prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn

import jinja2
from jinja2.environment import Template

from headrace.errors import InvalidModelFile, InvalidRequest, TemplateError
from headrace.model.gguf import Value
from headrace.model.prompt import RenderedPrompt
from headrace.model.template.meter import BudgetExceededError, Meter
from headrace.model.template.origins import (
    MESSAGE,
    PREFILL,
    TEMPLATE,
    concatenated,
    origins_of,
    traced,
)
from headrace.model.template.sandbox import Sandbox
from headrace.model.tokenizer import Tokenizer

_FILENAME = "<chat template>"
_KEY = "tokenizer.chat_template"

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""For a model without a template whose vocabulary has ChatML's markers."""

PLAIN = """\
{{ bos_token }}
{%- for message in messages %}
{% if message.role in ('system', 'developer') %}
{{ (message.content or '') + '\\n\\n' }}
{%- elif message.role == 'assistant' %}
{{ 'Assistant: ' + (message.content or '') + eos_token + '\\n\\n' }}
{%- else %}
{{ 'User: ' + (message.content or '') + '\\n\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ 'Assistant:' }}
{%- endif %}
"""
"""For any other model without a template."""

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
"""Templates spell markers with these (`'<|' + role + '|>'`), so these are not a user's text."""

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may cost. An input unit is one value, key or 64 characters of text."""

    num_source_chars: int = 1 << 17
    num_steps: int = 2_000_000
    num_steps_per_unit: int = 64
    num_chars: int = 1 << 20
    num_chars_per_char: int = 8


class ChatTemplate:
    """One model's chat template, compiled."""

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        tool_source: str | None = None,
        limits: TemplateLimits = TemplateLimits(),
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile `source`, and `tool_source` for requests with tools where a model has both.

        `bos_token` and `eos_token` are their spellings, for templates that write them. `now` is the
        clock of templates that write today's date. Raises `TemplateError`, naming the line.
        """
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._limits = limits
        self._sandbox = Sandbox(
            {
                "raise_exception": _reject,
                "strftime_now": lambda form: now().strftime(f"{form!s:.100}"),
            }
        )
        self._template = self._compile(source)
        self._tool_template = self._template if tool_source is None else self._compile(tool_source)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value], tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a GGUF, or the default for its vocabulary: `CHATML`, else `PLAIN`.

        Raises `InvalidModelFile` where the key is no text, `TemplateError` for a broken template.
        """
        source = _text(metadata, _KEY)
        if source is None:
            has_chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.control_tokens.keys()
            source = CHATML if has_chatml else PLAIN
        bos, eos = (
            "" if token is None else tokenizer.token_text(token)
            for token in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos, eos, tool_source=_text(metadata, f"{_KEY}.tool_use"))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> RenderedPrompt:
        """The prompt that asks for the next answer, or shows the messages only.

        With `continue_final_message` the last message is an answer's beginning, and the prompt ends
        exactly where it ends. `variables` are further ones that the template reads, for example
        `enable_thinking`; all strings in them count as a user's.

        Raises `InvalidRequest` for messages that are malformed or that the template refuses, and
        `TemplateError` for a template that is broken or works without end.
        """
        _check_messages(messages)
        plain = [_normal(message, index) for index, message in enumerate(messages)]
        if continue_final_message:
            return self._continue(plain, tools, variables)
        return _prompt(self._render(plain, tools, add_generation_prompt, variables))

    def _continue(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> RenderedPrompt:
        *earlier, final = messages
        prefill = final.get("content")
        if final["role"] != "assistant" or not isinstance(prefill, str):
            raise InvalidRequest(
                "only an assistant message with text can be continued",
                param=f"messages[{len(earlier)}]",
            )
        if prefill.strip():
            rendered = self._render(messages, tools, False, variables, prefill=prefill)
            cut = _cut_after_prefill(rendered, prefill)
            if cut is not None:
                return _prompt(cut)
        # The template does not show the answer as it is: let it ask for one, and begin it here.
        rendered = self._render(earlier, tools, True, variables)
        return _prompt(concatenated([rendered, traced(prefill, PREFILL)]))

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        *,
        prefill: str | None = None,
    ) -> str:
        """The whole output, traced."""
        try:
            values = {
                **{name: traced(value, MESSAGE) for name, value in variables.items()},
                "messages": [_traced_message(message) for message in messages],
                "tools": traced(tools, MESSAGE) if tools else None,
                "add_generation_prompt": add_generation_prompt,
                **self._tokens,
            }
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"messages and tools must be plain JSON: {error}") from None
        if prefill is not None:
            values["messages"][-1]["content"] = traced(prefill, PREFILL)
        template = self._tool_template if tools else self._template
        try:
            return self._run(template, values)
        except (TypeError, jinja2.UndefinedError) as error:
            if not _fill_missing_content(values["messages"]):
                _fail(error)
        try:
            return self._run(template, values)
        except (TypeError, jinja2.UndefinedError) as error:
            _fail(error)

    def _run(self, template: Template, values: dict[str, Any]) -> str:
        limits = self._limits
        num_units, num_chars = _measure(values)
        meter = Meter(
            limits.num_steps + limits.num_steps_per_unit * num_units,
            limits.num_chars + limits.num_chars_per_char * num_chars,
        )
        pieces: list[str] = []
        num_written = 0
        try:
            for piece in self._sandbox.pieces(template, values, meter):
                pieces.append(piece)
                num_written += len(piece)
                meter.allow(num_written)
        except _RejectedError as rejection:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {rejection}", param="messages"
            ) from None
        except (TypeError, jinja2.UndefinedError):
            raise
        except Exception as error:
            _fail(error)
        return concatenated(pieces)

    def _compile(self, source: str) -> Template:
        if len(source) > self._limits.num_source_chars:
            raise TemplateError(
                f"the model's chat template has {len(source)} characters; "
                f"{self._limits.num_source_chars} are allowed"
            )
        try:
            return self._sandbox.compile_metered(source, _FILENAME)
        except Exception as error:
            _fail(error)


def _text(metadata: Mapping[str, Value], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidModelFile(f"{key} must be a text; it is {value!r:.80}")
    return value


class _RejectedError(Exception):
    """The template called `raise_exception`: it does not want these messages."""


def _reject(message: Any = "") -> NoReturn:
    raise _RejectedError(f"{message!s:.500}")


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest("a message needs a role", param=f"messages[{index}].role")


def _normal(message: Message, index: int) -> dict[str, Any]:
    """A message as templates know it: text content as one string, reasoning by all its names."""
    normal = dict(message)
    content = message.get("content")
    if isinstance(content, list | tuple):
        normal["content"] = "\n".join(
            _part_text(part, f"messages[{index}].content[{place}]")
            for place, part in enumerate(content)
        )
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest("content must be text", param=f"messages[{index}].content")
    reasoning = next(
        (message[name] for name in ("reasoning_content", "reasoning", "thinking")
         if message.get(name) is not None), None
    )  # fmt: skip
    if reasoning is not None:
        normal |= {"reasoning_content": reasoning, "thinking": reasoning}
    return normal


def _part_text(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise InvalidRequest('only parts of type "text" can be read here', param=param)


def _traced_message(message: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = traced(message, MESSAGE)
    if message["role"] in _ROLES:
        values["role"] = message["role"]
    return values


def _fill_missing_content(messages: list[dict[str, Any]]) -> bool:
    """Templates older than tool calls add `content` unasked. Whether there was any to fill in."""
    empty = [message for message in messages if message.get("content") is None]
    for message in empty:
        message["content"] = ""
    return bool(empty)


def _measure(value: Any) -> tuple[int, int]:
    """Units and characters of an input."""
    if isinstance(value, str):
        return 1 + (len(value) >> 6), len(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if not isinstance(value, list):
        return 1, 0
    measures = [_measure(item) for item in value]
    return 1 + sum(units for units, _ in measures), sum(chars for _, chars in measures)


def _prompt(rendered: str) -> RenderedPrompt:
    by_template = re.finditer(bytes((TEMPLATE,)) + b"+", origins_of(rendered))
    return RenderedPrompt(str.__str__(rendered), tuple(run.span() for run in by_template))


def _cut_after_prefill(rendered: str, prefill: str) -> str | None:
    """`rendered` up to the end of the prefill; None where it does not show the prefill's end."""
    origins = origins_of(rendered)
    end = origins.rfind(PREFILL) + 1
    start = len(origins[:end].rstrip(bytes((PREFILL,))))
    shown, wanted = rendered[start:end].rstrip(), prefill.rstrip()
    if not shown or not wanted.endswith(shown):
        return None
    # Templates may show thoughts apart from the rest; what comes before must still be the same.
    before = wanted[: len(wanted) - len(shown)]
    if before.strip() and before[-1] != rendered[start - 1 : start]:
        return None
    # Templates trim messages; the end of an unfinished one is no accident.
    trimmed = traced(prefill[len(wanted) :], PREFILL)
    return concatenated([rendered[: start + len(shown)], trimmed])


def _fail(error: Exception) -> NoReturn:
    """Raise `TemplateError` for whatever a template's code or compilation raised."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        line: int | None = error.lineno
    else:
        line = _line(error.__traceback__)
    place = f" in line {line}" if line else ""
    if isinstance(error, RecursionError | MemoryError | SyntaxError):
        reason = "it calls itself, or nests, too deeply"
    elif isinstance(error, BudgetExceededError | jinja2.TemplateError):
        reason = f"{error!s:.500}"
    else:
        reason = f"{type(error).__name__}: {error!s:.500}"
    raise TemplateError(f"the model's chat template fails{place}: {reason}") from None


def _line(traceback: TracebackType | None) -> int | None:
    """The template's line that was running; the innermost one."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILENAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
