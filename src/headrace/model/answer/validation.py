"""What was generated, held against what was asked, with Groq's words for what is wrong.

Most answers cannot be wrong, because a grammar made them; this is for what no grammar covers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema_rs

from headrace.errors import InvalidRequest
from headrace.model.answer.parts import Call
from headrace.model.grammar.schema import is_tame

NO_CALL = (
    "Failed to call a function. Please adjust your prompt. "
    "See 'failed_generation' for more details."
)
REQUIRED = "Tool choice is required, but model did not call a tool"
NO_JSON = (
    "Failed to generate JSON. Please adjust your prompt. See 'failed_generation' for more details."
)
WRONG_JSON = "Generated JSON does not match the expected schema. Please adjust your prompt."

_MAX_ERRORS = 5
_MAX_ERROR_CHARS = 200


class Validator:
    """One JSON schema, ready to judge."""

    def __init__(self, schema: Mapping[str, Any], param: str, whose: str = "") -> None:
        """Raises `InvalidRequest`, naming `param`, for a schema that is none; `whose` says in the
        message what it is for."""
        self._is_tame = is_tame(schema)
        try:
            self._validator = _validator(json.dumps(schema))
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            reason = str(error).partition("\n")[0]
            reason = reason.replace(
                'is not a "regex"', "is no regular expression, or too large a one"
            )
            raise InvalidRequest(
                f"invalid JSON schema for {whose or param}: {reason:.300}", param=param
            ) from None

    def errors(self, value: Any) -> list[str]:
        """What is wrong with `value`; the first few of it. Nothing where finding out could take
        for ever: then the grammar's word must do."""
        errors: list[str] = []
        if not self._is_tame:
            return errors
        try:
            for error in self._validator.iter_errors(value):
                errors.append(f"{_words(error):.{_MAX_ERROR_CHARS}}")
                if len(errors) == _MAX_ERRORS:
                    break
        except ValueError as error:
            errors.append(f"{error!s:.{_MAX_ERROR_CHARS}}")
        return errors


class CallCheck:
    """Whether calls are of tools that were offered, with arguments as they were asked for."""

    def __init__(self, tools: Mapping[str, Validator]) -> None:
        self._tools = tools

    def error(self, call: Call) -> str | None:
        """What is wrong, in Groq's words."""
        validator = self._tools.get(call.name)
        if validator is None:
            return _failed(f"attempted to call tool '{call.name}' which was not in request.tools")
        errors = validator.errors(json.loads(call.arguments))
        if not errors:
            return None
        return _failed(
            f"parameters for tool {call.name} did not match schema: errors: [{', '.join(errors)}]"
        )


def json_error(text: str, validator: Validator | None) -> str | None:
    """What is wrong with an answer that had to be JSON, in Groq's words."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return NO_JSON
    return WRONG_JSON if validator is not None and validator.errors(value) else None


def _failed(reason: str) -> str:
    return f"Tool call validation failed: tool call validation failed: {reason}"


def _words(error: jsonschema_rs.ValidationError) -> str:
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return f"missing properties: '{kind.property}'"
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        names = ", ".join(f"'{name}'" for name in kind.unexpected)
        return f"additionalProperties {names} not allowed"
    path = "/".join(map(str, error.instance_path))
    return f"`/{path}`: {error.message}"


@lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    return jsonschema_rs.validator_for(
        json.loads(text),
        retriever=_refuse,
        pattern_options=jsonschema_rs.FancyRegexOptions(
            backtrack_limit=10_000, size_limit=1 << 20, dfa_size_limit=1 << 20
        ),
    )


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"references to other documents are not followed: {uri:.100}")
