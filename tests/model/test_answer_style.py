"""An `Ask` becomes a plan, and a random model that follows the plan says what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from headrace.engine.request import Request
from headrace.errors import InvalidRequest, JSONValidateFailed, ToolUseFailed
from headrace.events import Delta, Finished, FinishReason, ToolCall
from headrace.model import gguf
from headrace.model.answer import AnswerPlan, AnswerStyle
from headrace.model.answer.formats import GENERIC, HERMES, LLAMA, MISTRAL
from headrace.model.prompt import RenderedPrompt
from headrace.model.template import ChatTemplate
from headrace.model.tokenizer import Tokenizer
from headrace.testing import END_ID, START_ID, FakeModel, FakeTemplate, FakeTokenizer, ManualEngine
from headrace.wire.ask import Ask, JSONObject, JSONSchema, NamedTool, Tool

TEMPLATES = Path(__file__).parent.parent / "golden" / "templates"
WHO = ({"role": "user", "content": "Who? In JSON."},)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 2]}},
    "required": ["city", "n"],
}
WEATHER = Tool("weather", "What it is like outside.", CITY)
TIME = Tool("time")


class Thinking(FakeTemplate):
    """A template whose model thinks; `enable_thinking` begins its thoughts."""

    source = "<|start|>system … <think> … </think>"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> RenderedPrompt:
        prompt = super().render(
            messages, tools, continue_final_message=continue_final_message, **variables
        )
        opened = "<think>\n" if variables.get("enable_thinking") else ""
        return RenderedPrompt(prompt.text + opened, prompt.template_spans)


STYLE = AnswerStyle.for_model(FakeTemplate(), FakeTokenizer())
THINKING = AnswerStyle.for_model(Thinking(), FakeTokenizer())


def ask(**settings: Any) -> Ask:
    return Ask(**{"model": "m", "messages": WHO} | settings)


def answer(
    question: Ask, style: AnswerStyle = STYLE, *, seed: int = 0, max_tokens: int = 1500
) -> tuple[str, str, list[ToolCall], FinishReason]:
    """Text, thoughts, calls and reason of a random model's answer."""
    plan = style.plan(question)
    engine = ManualEngine(FakeModel(context_length=4096))
    generation = engine.generate_sync(request(plan, question, seed, max_tokens))
    engine.run_until_idle()
    parser = plan.parser(0)
    said: list[Delta | ToolCall] = []
    for event in generation.ready():
        if isinstance(event, Delta):
            said += [event] if parser is None else parser.push(event)
        elif isinstance(event, Finished):
            rest, reason = ([], event.reason) if parser is None else parser.finish(event.reason)
            said += rest
    deltas = [event for event in said if isinstance(event, Delta)]
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [event for event in said if isinstance(event, ToolCall)],
        reason,
    )


def request(plan: AnswerPlan, question: Ask, seed: int, max_tokens: int) -> Request:
    return Request(
        messages=plan.messages,
        tools=plan.tools,
        template_variables=plan.template_variables,
        grammar=plan.grammar,
        visible_tokens=plan.visible_tokens,
        continue_final_message=question.continues,
        temperature=1.0,
        max_tokens=max_tokens,
        stop=question.stop,
        seed=seed,
    )


class TestPlain:
    def test_a_plain_question_needs_nothing(self) -> None:
        plan = STYLE.plan(ask())
        assert plan.messages == WHO
        assert plan.grammar is None
        assert plan.parser(0) is None
        assert plan.tools == ()
        assert not STYLE.needs_time(ask())

    def test_a_bare_prompt_is_left_alone(self) -> None:
        plan = THINKING.plan(Ask(model="m", prompt="Once"))
        assert plan.messages is None
        assert plan.parser(0) is None

    def test_tools_that_must_not_be_called_are_not_shown(self) -> None:
        plan = STYLE.plan(ask(tools=(WEATHER,), tool_choice="none"))
        assert plan.messages == WHO
        assert plan.grammar is None
        assert plan.parser(0) is None


class TestForcedCalls:
    @pytest.mark.parametrize("seed", range(3))
    def test_required(self, seed: int) -> None:
        text, _, calls, reason = answer(
            ask(tools=(WEATHER, TIME), tool_choice="required"), seed=seed
        )
        assert (text, reason) == ("", "tool_calls")
        for call in calls:
            assert call.name in ("weather", "time")
            if call.name == "weather":
                jsonschema_rs.validate(CITY, json.loads(call.arguments))

    def test_by_name_and_once(self) -> None:
        question = ask(tools=(TIME, WEATHER), tool_choice=NamedTool("weather"))
        _, _, calls, _ = answer(question)
        assert [call.name for call in calls] == ["weather"]

    def test_one_at_a_time(self) -> None:
        question = ask(tools=(WEATHER,), tool_choice="required", parallel_tool_calls=False)
        for seed in range(3):
            assert len(answer(question, seed=seed)[2]) == 1

    def test_cut_by_length(self) -> None:
        *_, calls, reason = answer(ask(tools=(WEATHER,), tool_choice="required"), max_tokens=20)
        assert (calls, reason) == ([], "length")

    def test_stopped_by_a_string(self) -> None:
        with pytest.raises(ToolUseFailed):
            answer(ask(tools=(WEATHER,), tool_choice="required", stop=("name",)))

    def test_no_such_tool(self) -> None:
        with pytest.raises(InvalidRequest, match="requested tool does not exist"):
            STYLE.plan(ask(tools=(TIME,), tool_choice=NamedTool("weather")))

    def test_no_schema(self) -> None:
        bad = Tool("bad", parameters={"type": "banana"})
        with pytest.raises(InvalidRequest, match=r"invalid JSON schema for tool bad, ") as caught:
            STYLE.plan(ask(tools=(TIME, bad), tool_choice=NamedTool("bad")))
        assert caught.value.param == "tools[1].function.parameters"

    def test_ids_are_nine_letters_and_follow_their_seed(self) -> None:
        plan = STYLE.plan(ask(tools=(TIME,)))

        def first_id(choice: int, id_seed: str) -> str:
            parser = plan.parser(choice, id_seed)
            assert parser is not None
            said = parser.push(Delta(choice, 0, (1,), '<tool_call>{"name":"time"}</tool_call>'))
            return next(event.id for event in said if isinstance(event, ToolCall))

        assert first_id(0, "req") == first_id(0, "req")
        assert len({first_id(0, "req"), first_id(1, "req"), first_id(0, ""), first_id(0, "")}) == 4
        assert len(first_id(0, "")) == 9
        assert first_id(0, "").isalnum()


class TestJSON:
    @pytest.mark.parametrize("is_strict", [False, True])
    def test_schema(self, is_strict: bool) -> None:
        for seed in range(3):
            text, *_, reason = answer(
                ask(response_format=JSONSchema("city", CITY, is_strict)), seed=seed
            )
            jsonschema_rs.validate(CITY, json.loads(text))
            assert reason == "stop"

    def test_the_schema_is_shown(self) -> None:
        plan = STYLE.plan(ask(response_format=JSONSchema("city", CITY)))
        assert plan.messages is not None
        assert json.dumps(CITY) in plan.messages[0]["content"]
        assert plan.messages[1:] == WHO

    def test_a_grammar_that_says_all_needs_no_check(self) -> None:
        assert STYLE.plan(ask(response_format=JSONSchema("city", CITY))).parser(0) is None
        assert STYLE.plan(ask(response_format=JSONObject())).parser(0) is None

    def test_what_the_grammar_cannot_say_is_checked(self) -> None:
        odd = {"type": "string", "maxLength": 3, "not": {"const": "ab"}}
        plan = STYLE.plan(ask(response_format=JSONSchema("odd", odd)))
        parser = plan.parser(0)
        assert parser is not None
        parser.push(Delta(0, 0, (1,), '"ab"'))
        with pytest.raises(JSONValidateFailed):
            parser.finish("stop")
        assert plan.grammar is not None

    def test_but_refused_where_it_must_be_followed(self) -> None:
        odd = {"type": "string", "pattern": "^(?=a)"}
        assert STYLE.plan(ask(response_format=JSONSchema("odd", odd))).grammar is not None
        with pytest.raises(InvalidRequest, match=r"`response_format\.json_schema\.schema` cannot"):
            STYLE.plan(ask(response_format=JSONSchema("odd", odd, strict=True)))

    def test_goes_on_from_an_answers_beginning(self) -> None:
        messages = (*WHO, {"role": "assistant", "content": '{"city": "Oslo", '})
        question = ask(messages=messages, continues=True, response_format=JSONSchema("c", CITY))
        text, *_ = answer(question)
        assert json.loads('{"city": "Oslo", ' + text)["n"] in (1, 2)

    def test_begins_after_an_answers_prose(self) -> None:
        messages = (*WHO, {"role": "assistant", "content": "Here: ```json\n"})
        question = ask(messages=messages, continues=True, response_format=JSONSchema("c", CITY))
        jsonschema_rs.validate(CITY, json.loads(answer(question)[0]))

    def test_or_a_call(self) -> None:
        outcomes = set()
        for number in range(8):
            question = ask(
                messages=({"role": "user", "content": str(number)},),
                response_format=JSONSchema("c", CITY),
                tools=(WEATHER,),
            )
            text, _, calls, reason = answer(question)
            outcomes.add(reason)
            if reason == "stop":
                jsonschema_rs.validate(CITY, json.loads(text))
            else:
                assert calls
                assert text == ""
        assert outcomes == {"stop", "tool_calls"}


class TestThoughts:
    def test_raw_is_left_alone(self) -> None:
        assert THINKING.plan(ask()).parser(0) is None

    def test_raw_shows_what_the_template_began(self) -> None:
        plan = THINKING.plan(ask(reasoning_effort="default"))
        assert plan.template_variables == {"enable_thinking": True}
        parser = plan.parser(0)
        assert parser is not None
        (said,) = parser.push(Delta(0, 0, (1,), "hm</think>"))
        assert isinstance(said, Delta)
        assert said.text == "<think>\nhm</think>"

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"reasoning_format": "parsed"}, ("hm", "yes")),
            ({"reasoning_format": "hidden"}, ("", "yes")),
            ({"include_reasoning": False}, ("", "yes")),
            ({"reasoning_format": "raw", "tools": (TIME,)}, ("hm", "yes")),
        ],
    )
    @pytest.mark.parametrize("effort", ["none", "high"])
    def test_apart(self, settings: dict[str, Any], told: tuple[str, str], effort: str) -> None:
        parser = THINKING.plan(ask(reasoning_effort=effort, **settings)).parser(0)
        assert parser is not None
        opening = "<think>" if effort == "none" else ""
        said = parser.push(Delta(0, 0, (1,), f"{opening}hm</think>\nyes"))
        said += parser.finish("stop")[0]
        deltas = [event for event in said if isinstance(event, Delta)]
        assert ("".join(d.reasoning for d in deltas), "".join(d.text for d in deltas)) == told

    def test_a_prefill_inside_the_thoughts(self) -> None:
        messages = (*WHO, {"role": "assistant", "content": "<think>well"})
        plan = THINKING.plan(ask(messages=messages, continues=True, reasoning_format="parsed"))
        parser = plan.parser(0)
        assert parser is not None
        parser.push(Delta(0, 0, (1,), " now</think>"))
        assert parser.num_reasoning_tokens == 1

    def test_effort(self) -> None:
        variables = THINKING.plan(ask(reasoning_effort="low")).template_variables
        assert variables == {"enable_thinking": True, "reasoning_effort": "low"}
        assert STYLE.plan(ask(reasoning_effort="low")).template_variables == {}


class TestMessages:
    HISTORY = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "call_123456",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_123456", "content": "rain"},
    )

    def test_templates_without_tools_are_told_in_words(self) -> None:
        messages = STYLE.plan(ask(messages=self.HISTORY, tools=(WEATHER,))).messages
        assert messages is not None
        system, _, called, told = messages
        assert system["content"].startswith("Be brief.\n\n# Functions\n")
        assert '"name": "weather"' in system["content"]
        assert called == {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n'
            "</tool_call>",
        }
        assert told == {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}

    def test_a_template_without_system_messages_gets_them_with_the_first(self) -> None:
        class Simple(FakeTemplate):
            source = "{{ messages }}"

        messages = (
            AnswerStyle.for_model(Simple(), FakeTokenizer()).plan(ask(tools=(TIME,))).messages
        )
        assert messages is not None
        (first,) = messages
        assert first["role"] == "user"
        assert first["content"].endswith(f"\n\n{WHO[0]['content']}")

    @pytest.mark.parametrize(
        ("name", "form"), [("llama", LLAMA), ("mistral", MISTRAL), ("qwen", HERMES)]
    )
    def test_families_render_their_own_calls(self, name: str, form: Any) -> None:
        template = ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(), "<s>", "</s>")
        style = AnswerStyle.for_model(template, FakeTokenizer())
        assert style.format == form
        plan = style.plan(ask(messages=self.HISTORY, tools=(WEATHER,)))
        assert plan.messages is not None
        text = template.render(plan.messages, plan.tools).text
        assert '"city": "Oslo"' in text
        assert "What it is like outside." in text
        assert '\\"city' not in text


class Marked(FakeTokenizer):
    control_tokens: Mapping[str, int] = {"<tool_call>": START_ID, "<|end|>": END_ID}


def test_markers_that_are_control_tokens_become_visible() -> None:
    style = AnswerStyle.for_model(FakeTemplate(), Marked())
    plan = style.plan(ask(tools=(TIME,), tool_choice="required", parallel_tool_calls=False))
    assert plan.visible_tokens == {START_ID: b"<tool_call>"}
    assert STYLE.plan(ask(tools=(TIME,))).visible_tokens == {}
    assert style.plan(ask()).visible_tokens == {}
    for seed in range(3):
        assert [call.name for call in answer(ask(tools=(TIME,), tool_choice="required",
                parallel_tool_calls=False), style, seed=seed)[2]] == ["time"]  # fmt: skip


def test_the_default_model(default_model_path: Path) -> None:
    file = gguf.read(default_model_path)
    tokenizer = Tokenizer.from_metadata(file.metadata)
    template = ChatTemplate.from_metadata(file.metadata, tokenizer)
    style = AnswerStyle.for_model(template, tokenizer)
    assert style.format == GENERIC
    assert style.thinks is None
    style.warm_up()
    plan = style.plan(ask(tools=(WEATHER,), response_format=JSONSchema("c", CITY)))
    assert plan.messages is not None
    assert "# Functions" in template.render(plan.messages).text
    assert plan.grammar is not None
    state = plan.grammar.start(tokenizer.vocab_size)
    for token in tokenizer.encode('{"city":"Oslo","n":2}'):
        state.accept(token)
    assert state.is_complete
