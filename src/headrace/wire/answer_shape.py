"""What an answer may look like: tools and their choice, JSON and its schema.

Chat nests a tool or a format in an object of its own, responses write it flat; inside they agree.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.errors import InvalidRequest
from headrace.wire.ask import (
    JSONObject,
    JSONSchema,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from headrace.wire.fields import Given, Table, Variants, field, unused
from headrace.wire.kinds import Boolean, ByType, Many, OneOf, Text, Then
from headrace.wire.reading import Path, Reading, spelled
from headrace.wire.schema_limits import SCHEMA, open_object

NAME = Text(r"[a-zA-Z0-9_-]{1,64}", "1 to 64 letters, digits, `_` or `-`")

_FUNCTION = Table(
    field("name", NAME, required=True),
    field("description", Text()),
    field("parameters", SCHEMA),
    field("strict", Boolean()),
)
_FORMAT = Table(
    field("name", NAME, required=True),
    unused("description", Text()),
    field("schema", SCHEMA),
    field("strict", Boolean()),
)
_NAMED = Table(field("name", NAME, required=True))


def _tools(given: list[Given], path: Path, reading: Reading) -> tuple[Tool, ...]:
    nested = [item.get("function", item) for item in given]
    tools = tuple(
        Tool(**{name: value for name, value in function.items() if name != "type"})
        for function in nested
    )
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        if names.setdefault(tool.name, index) != index:
            raise InvalidRequest(
                f"`{spelled((*path, index))}` is named `{tool.name}`, as "
                f"`{spelled((*path, names[tool.name]))}` is; names must differ",
                param=spelled((*path, index)),
            )
        if reading.strict and tool.strict:
            _check_closed(tool, (*path, index))
    return tools


def _check_closed(tool: Tool, path: Path) -> None:
    place = open_object(tool.parameters)
    if place is not None:
        param = spelled((*path, "function", "parameters"))
        raise InvalidRequest(
            f"invalid JSON schema for tool {tool.name}, {param}: {place}: "
            "additionalProperties:false must be set on every object",
            param=param,
        )


TOOLS = Then(
    Many(
        Variants("type", {"function": Table(field("function", _FUNCTION, required=True))}),
        "tools",
        limit="max_tools",
    ),
    _tools,
)
FUNCTIONS = Then(Many(_FUNCTION, "functions", limit="max_tools"), _tools)
"""Chat's older spelling."""
FLAT_TOOLS = Then(
    Many(Variants("type", {"function": _FUNCTION}), "tools", limit="max_tools"), _tools
)
"""As `/responses` has them."""

_WORDS = OneOf("none", "auto", "required")


def _choice(given: str | Given, path: Path, reading: Reading) -> str | NamedTool:
    return given if isinstance(given, str) else NamedTool(given.get("function", given)["name"])


def _choosing(named: Variants | Table) -> Then:
    wanted = "`none`, `auto`, `required` or an object that names a tool"
    return Then(ByType({str: _WORDS, dict: named}, wanted), _choice)


TOOL_CHOICE = _choosing(
    Variants("type", {"function": Table(field("function", _NAMED, required=True))})
)
FUNCTION_CALL = _choosing(_NAMED)
FLAT_TOOL_CHOICE = _choosing(Variants("type", {"function": _NAMED}))


def chosen(choice: ToolChoice | None, tools: Iterable[Tool]) -> ToolChoice:
    """What `tool_choice` comes to with these tools. Raises `InvalidRequest` for a tool that is not
    among them, and where one is required and there is none."""
    names = {tool.name for tool in tools}
    if isinstance(choice, NamedTool):
        if choice.name not in names:
            raise InvalidRequest("requested tool does not exist", param="tool_choice")
        return choice
    if names:
        return choice or "auto"
    if choice == "required":
        raise InvalidRequest(
            "`tool_choice` is `required`, but the request has no `tools`", param="tool_choice"
        )
    return "none"


def _format(given: Given, path: Path, reading: Reading) -> ResponseFormat:
    match given["type"]:
        case "text":
            return None
        case "json_object":
            return JSONObject()
    inner: Given = given.get("json_schema", given)
    made = JSONSchema(
        inner["name"], inner.get("schema", {"type": "object"}), inner.get("strict", False)
    )
    if reading.strict and made.strict and (place := open_object(made.schema)) is not None:
        raise InvalidRequest(
            f"invalid JSON schema for response_format: '{made.name}{place}': "
            "`additionalProperties:false` must be set on every object",
            param=spelled(path),
        )
    return made


def _formatting(schema: Table) -> Then:
    shapes = {"text": Table(), "json_object": Table(), "json_schema": schema}
    return Then(Variants("type", shapes), _format)


RESPONSE_FORMAT = _formatting(Table(field("json_schema", _FORMAT, required=True)))
TEXT_FORMAT = _formatting(_FORMAT)
"""As `/responses` has it, in `text.format`."""
