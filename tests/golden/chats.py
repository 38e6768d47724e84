"""The conversations that the golden renderings were recorded for, and that tests replay."""

from __future__ import annotations

from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather "now",\nin a <city> & its province',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string",
                    "description": "e.g. São Paulo, 東京, or any other city",
                },
                "unit": {"type": "string", "enum": ["°C", "°F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "place": {"type": "object", "properties": {"lat": {"type": "number"}}},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def _call(name: str, arguments: Any, call_id: str = "abcdef123") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def conversations() -> list[dict[str, Any]]:
    """Arguments of `render`: messages, and where they differ tools and variables."""
    ask = _say("user", "What's the weather in Łódź?")
    weather_call = _say("assistant", None, tool_calls=[_call("get_weather", {"city": "Łódź"})])
    weather = _say("tool", '{"temperature": -3.5}', tool_call_id="abcdef123", name="get_weather")
    text_call = _say("assistant", "One moment.", tool_calls=[_call("clock", '{"tz": "UTC"}')])
    thoughts = "<think>\nHm, 2+2.\n</think>\n\n4."
    return [
        {"messages": [_say("user", "Hello!")]},
        {"messages": [_say("user", "Hello!")], "add_generation_prompt": False},
        {"messages": [_say("system", "  Be brief. \n"), _say("user", " Hi \n\n there ")]},
        {"messages": [_say("user", "a"), _say("assistant", " b "), _say("user", "c")]},
        {
            "messages": [
                _say("system", 'Quotes "x" & <b> \\ \t 日本 😀'),
                _say("user", "{{ not_a_template }} {% raw %}"),
                _say("assistant", ""),
                _say("user", "\u2028\u0001\x7f"),
            ]
        },
        {"messages": [ask], "tools": [WEATHER]},
        {"messages": [ask], "tools": [WEATHER, CLOCK]},
        {"messages": [_say("system", "S"), ask, weather_call, weather], "tools": [WEATHER]},
        {"messages": [ask, weather_call, weather, _say("assistant", "Cold."), _say("user", "Ok")]},
        {"messages": [ask, text_call, weather, weather], "tools": [CLOCK]},
        {
            "messages": [
                ask,
                _say("assistant", "", tool_calls=[_call("a", {}), _call("b", {"x": 1})]),
            ],
            "tools": [CLOCK],
        },
        {"messages": [_say("user", "2+2?"), _say("assistant", thoughts)]},
        {"messages": [_say("user", "2+2?"), _say("assistant", thoughts), _say("user", "And 3+3?")]},
        {
            "messages": [
                _say("user", "2+2?"),
                _say("assistant", "4.", reasoning_content="Easy."),
            ],
            "add_generation_prompt": False,
        },
        {"messages": [_say("user", "Hi")], "variables": {"enable_thinking": False}},
        {"messages": [_say("user", "Hi")], "variables": {"date_string": "29 Feb 2024"}},
        {"messages": [_say("user", "a"), _say("user", "b")]},
        {"messages": [_say("assistant", "a"), _say("user", "b")]},
        {"messages": [_say("user", "a"), _say("system", "late"), _say("user", "b")]},
        {"messages": [_say("custom", "who?"), _say("user", "b")]},
        {"messages": [ask, _say("assistant", None, tool_calls=[_call("x", {}, "short")])]},
    ]
