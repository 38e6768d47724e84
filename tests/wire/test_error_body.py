import json

import pytest

from headrace.errors import (
    ContextLengthExceeded,
    EngineOverloaded,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    RequestTooLarge,
    ToolUseFailed,
)
from headrace.wire.error_body import error_body, error_frame, error_headers


def limited(retry_after_s: float | None) -> RateLimited:
    return RateLimited("slower", wire_type="tokens", retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("error", "inside"),
    [
        (InvalidRequest("no"), '{"message":"no","type":"invalid_request_error"}'),
        (
            ContextLengthExceeded("Please reduce the length.", param="messages"),
            '{"message":"Please reduce the length.","type":"invalid_request_error",'
            '"code":"context_length_exceeded","param":"messages"}',
        ),
        (
            ModelNotFound("The model `x` does not exist."),
            '{"message":"The model `x` does not exist.","type":"invalid_request_error",'
            '"code":"model_not_found"}',
        ),
        (limited(1), '{"message":"slower","type":"tokens","code":"rate_limit_exceeded"}'),
        (
            ToolUseFailed("no call", ""),
            '{"message":"no call","type":"invalid_request_error","code":"tool_use_failed",'
            '"failed_generation":""}',
        ),
        (
            GenerationFailed("NaN <&>"),
            '{"message":"NaN \\u003c\\u0026\\u003e","type":"internal_server_error",'
            '"code":"generation_failed"}',
        ),
    ],
)
def test_the_envelope(error: HeadraceError, inside: str) -> None:
    assert error_body(error) == b'{"error":' + inside.encode() + b"}\n"


def test_a_frame_as_it_was_seen() -> None:
    said = '{"name": "get_something_by_name", "arguments": {\n  "invalid_param": "value"\n}}'
    message = (
        "Tool call validation failed: tool call validation failed: parameters for tool "
        "get_something_by_name did not match schema: errors: [missing properties: 'name', "
        "additionalProperties 'invalid_param' not allowed]"
    )
    seen = (
        'event: error\ndata: {"error":{"message":"' + message + '","type":"invalid_request_error",'
        '"code":"tool_use_failed","failed_generation":"{\\"name\\": \\"get_something_by_name\\", '
        '\\"arguments\\": {\\n  \\"invalid_param\\": \\"value\\"\\n}}","status_code":400}}\n\n'
    )
    assert error_frame(ToolUseFailed(message, said)) == seen.encode()


@pytest.mark.parametrize(
    ("wait_s", "headers"),
    [
        (None, {}),
        (0.0, {"retry-after": "1"}),
        (0.2, {"retry-after": "1"}),
        (2.0, {"retry-after": "2"}),
        (2.001, {"retry-after": "3"}),
        (60.0, {"retry-after": "60"}),
        (60.5, {"retry-after": "61", "x-should-retry": "false"}),
        (86_400.0, {"retry-after": "86400", "x-should-retry": "false"}),
        (float("inf"), {"x-should-retry": "false"}),
    ],
)
def test_when_to_come_again(wait_s: float | None, headers: dict[str, str]) -> None:
    assert error_headers(limited(wait_s)) == headers
    assert error_headers(EngineOverloaded("full", retry_after_s=wait_s)) == headers


def test_most_errors_have_no_headers() -> None:
    assert error_headers(InvalidRequest("no")) == {}
    too_large = RequestTooLarge("never", wire_type="tokens", retry_after_s=None)
    assert error_headers(too_large) == {}


def test_odd_text_is_no_second_error() -> None:
    error = InvalidRequest("no field \ud800", param="\udfff")
    assert json.loads(error_body(error))["error"]["message"] == "no field \ufffd"
    assert b"\n" not in error_frame(InvalidRequest("a\nb\r")).removeprefix(b"event: error\n")[:-2]
