"""The API's description: whole, valid, and of one mind with the parsers."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.body import BodyLimits
from headrace.wire.chat_request import CHAT, parse_chat
from headrace.wire.completion_request import COMPLETION, parse_completion
from headrace.wire.fields import Table
from headrace.wire.openapi import PREFIXES, openapi
from headrace.wire.responses_request import RESPONSES, parse_responses
from support.bodies import from_schema

DOCUMENT = openapi()
LIMITS = BodyLimits()
ENDPOINTS: list[tuple[str, Table, Callable[..., Any]]] = [
    ("ChatCompletionRequest", CHAT, parse_chat),
    ("CompletionRequest", COMPLETION, parse_completion),
    ("ResponseRequest", RESPONSES, parse_responses),
]


def everything(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from everything(part)


def test_all_paths_are_there_under_both_prefixes() -> None:
    api = {"/chat/completions", "/completions", "/responses", "/models", "/models/{model}"}
    api |= {"/streams/{id}" + rest for rest in ("", "/cancel", "/events", "/token")}
    one = "/conversations/{id}"
    api |= {"/conversations", "/conversations/import", one, one + "/items", one + "/items/{item}"}
    api |= {one + rest for rest in ("/fork", "/rollback", "/export")}
    api |= {one + "/documents", one + "/documents/{document}"}
    api |= {"/embeddings", "/responses/{id}", "/responses/{id}/input_items"}
    root = {"/health", "/ready", "/metrics", "/api/chat"}
    assert set(DOCUMENT["paths"]) == {p + path for p in PREFIXES for path in api} | root


def test_every_reference_leads_somewhere() -> None:
    references = [one["$ref"] for one in everything(DOCUMENT) if "$ref" in one]
    assert references
    for reference in references:
        target = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_operations_have_names_of_their_own() -> None:
    names = [one["operationId"] for one in everything(DOCUMENT) if "operationId" in one]
    assert len(names) == len(set(names)) == 23 + 21 * len(PREFIXES) + 1


def test_every_error_of_an_answer_is_declared() -> None:
    for prefix in PREFIXES:
        for path in ("/chat/completions", "/completions", "/responses"):
            responses = DOCUMENT["paths"][prefix + path]["post"]["responses"]
            assert set(responses) == {
                *(
                    "200",
                    "400",
                    "401",
                    "403",
                    "404",
                    "409",
                    "413",
                    "422",
                    "429",
                    "498",
                    "500",
                    "503",
                    "504",
                )
            }


def test_every_error_of_a_stream_is_declared() -> None:
    for prefix in PREFIXES:
        for path, method in [("", "get"), ("", "delete"), ("/events", "get"), ("/token", "post")]:
            operation = DOCUMENT["paths"][f"{prefix}/streams/{{id}}{path}"][method]
            assert {"200", "400", "401", "403", "404", "410", "500"} <= set(operation["responses"])
            names = {parameter["name"] for parameter in operation["parameters"]}
            assert ("token" in names) == (method == "get")


def test_it_is_json() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_it_is_made_anew_each_time() -> None:
    openapi()["paths"].clear()
    next(everything(openapi()["components"]["schemas"]["Error"]))
    assert openapi() == DOCUMENT


def test_limits_are_the_servers() -> None:
    schemas = openapi(BodyLimits(max_tools=3))["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["properties"]["tools"]["maxItems"] == 3


@pytest.mark.parametrize(("name", "table", "parse"), ENDPOINTS, ids=lambda value: str(value)[:20])
def test_its_schemas_are_the_tables(name: str, table: Table, parse: Callable[..., Any]) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert list(schema["properties"]) == [row.name for row in table.fields]
    for row in table.fields:
        assert schema["properties"][row.name]["description"], row.name


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
def test_its_examples_are_understood(path: str) -> None:
    body = DOCUMENT["paths"]["/v1" + path]["post"]["requestBody"]["content"]["application/json"]
    parse = {"/chat/completions": parse_chat, "/completions": parse_completion}
    parse.get(path, parse_responses)(body["example"], LIMITS)  # type: ignore[operator]


AT_ODDS = {
    # What a schema cannot say: fields that need others, and names that are taken.
    *("tools", "tool_choice", "functions", "function_call", "best_of", "chat_template_kwargs"),
    "documents",
}


@pytest.mark.parametrize(("name", "table", "parse"), ENDPOINTS, ids=lambda value: str(value)[:20])
def test_what_it_allows_is_accepted(name: str, table: Table, parse: Callable[..., Any]) -> None:
    """Field by field: a value that the schema allows is never refused."""
    schema = DOCUMENT["components"]["schemas"][name]
    allowed = {field: from_schema(one) for field, one in schema["properties"].items()}
    least: dict[str, Any] = {
        "model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"
    }  # fmt: skip
    least = {field: least[field] for field in schema["required"]}
    fields = sorted(allowed.keys() - AT_ODDS - {"messages", "input", "n"})

    @settings(max_examples=60)
    @given(st.sampled_from(fields).flatmap(lambda field: st.tuples(st.just(field), allowed[field])))
    def check(sent: tuple[str, Any]) -> None:
        field, value = sent
        parse({**least, field: value}, LIMITS)

    check()


def test_what_it_forbids_is_refused() -> None:
    properties = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for name, schema in properties.items():
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if bound in schema:
                with pytest.raises(InvalidRequest, match=name):
                    parse_chat({**body, name: schema[bound] + step}, LIMITS)
