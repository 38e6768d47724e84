import groq._models
import openai._models
import pytest
from groq.types import CompletionUsage
from groq.types.chat.chat_completion import XGroqUsage
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage as OpenAIUsage
from openai.types.responses import ResponseUsage

from headrace.events import Finished, Timings, Usage
from headrace.wire.json_bytes import compact
from headrace.wire.usage import cached_where, responses_usage, usage_object


def end(usage: Usage, timings: Timings) -> Finished:
    return Finished(0, "stop", usage, timings)


SECONDS = st.floats(0, 1000)
ENDS = st.builds(
    end,
    st.builds(Usage, st.integers(1, 99), st.integers(0, 99), st.integers(0, 99)),
    st.builds(Timings, SECONDS, SECONDS, SECONDS),
)


def test_as_it_was_seen() -> None:
    said = usage_object([[end(Usage(218, 0, 15), Timings(0.179481775, 0.01182836, 0.044602289))]])
    assert compact(said) == (
        b'{"queue_time":0.179481775,"prompt_tokens":218,"prompt_time":0.01182836,'
        b'"completion_tokens":15,"completion_time":0.044602289,"total_tokens":233,'
        b'"total_time":0.056430649}'
    )


def test_another_as_it_was_seen() -> None:
    timings = Timings(0.041905864, 0.003940145, 2.652230333)
    said = usage_object([[end(Usage(45, 0, 662), timings)]])
    assert said["total_time"] == 2.656170478


def test_details_where_they_are_not_nothing() -> None:
    said = usage_object([[end(Usage(4641, 4608, 1), Timings(0, 1, 0))]])
    assert list(said)[-2:] == ["total_time", "prompt_tokens_details"]
    assert said["prompt_tokens_details"] == {"cached_tokens": 4608}
    assert "completion_tokens_details" not in said


def test_where_cached_tokens_came_from() -> None:
    timings = Timings(0, 1, 0)
    assert cached_where([[end(Usage(99, 0, 1), timings)]]) == {}
    both = Usage(99, 96, 1, num_loaded_tokens=64)
    sibling = Usage(99, 98, 1)
    cached = cached_where([[end(sibling, timings), end(both, timings)], [end(both, timings)]])
    assert cached == {"sram_cached_tokens": 64, "dram_cached_tokens": 128}
    assert groq._models.validate_type(type_=XGroqUsage, value=cached).dram_cached_tokens == 128


def test_whole_seconds_have_no_decimal_point() -> None:
    said = compact(usage_object([[end(Usage(1, 0, 1), Timings(0.0, 2.0, 0.5))]]))
    assert b'"queue_time":0,' in said
    assert b'"prompt_time":2,' in said
    assert b'"total_time":2.5}' in said


def test_choices_share_their_prompt_and_run_side_by_side() -> None:
    first = end(Usage(100, 0, 10), Timings(0.1, 0.5, 1.0))
    sibling = end(Usage(100, 96, 30), Timings(0.1, 0.75, 2.0))
    assert usage_object([[first, sibling]]) == {
        "queue_time": 0.1,
        "prompt_tokens": 100,
        "prompt_time": 0.5,
        "completion_tokens": 40,
        "completion_time": 2.25,
        "total_tokens": 140,
        "total_time": 2.75,
    }


def test_several_prompts_are_added_up() -> None:
    ends = [end(Usage(num, 32, 5), Timings(0.0, 1.0, 1.0)) for num in (40, 60)]
    said = usage_object([[ends[0]], [ends[1]]])
    assert (said["prompt_tokens"], said["completion_tokens"]) == (100, 10)
    assert said["prompt_tokens_details"] == {"cached_tokens": 64}
    assert said["total_time"] == 2


def test_a_choice_that_never_ran_has_no_first_token() -> None:
    ran = end(Usage(10, 0, 5), Timings(1.0, 1.0, 1.0))
    stopped = end(Usage(10, 0, 0), Timings(0.25, 0.0, 0.0))
    said = usage_object([[stopped, ran]])
    assert (said["queue_time"], said["prompt_time"], said["completion_time"]) == (1, 1, 1)
    assert usage_object([[stopped]])["queue_time"] == 0.25


@given(st.lists(ENDS, min_size=1, max_size=3))
def test_times_add_up_and_clients_take_them(ends: list[Finished]) -> None:
    said = usage_object([ends])
    parts_ns = [round(said[name] * 1e9) for name in ("prompt_time", "completion_time")]
    assert round(said["total_time"] * 1e9) == sum(parts_ns)
    assert min(said["queue_time"], *parts_ns) >= 0
    assert said["total_tokens"] == said["prompt_tokens"] + said["completion_tokens"]
    assert groq._models.validate_type(type_=CompletionUsage, value=said).total_tokens
    assert openai._models.validate_type(type_=OpenAIUsage, value=said).total_tokens


def test_usage_of_responses() -> None:
    said = responses_usage(end(Usage(81, 64, 1035), Timings(0, 1, 1)))
    assert said == {
        "input_tokens": 81,
        "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
        "output_tokens": 1035,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1116,
    }
    assert openai._models.validate_type(type_=ResponseUsage, value=said).total_tokens == 1116


def test_thoughts_are_counted_where_they_are_known() -> None:
    thought = end(Usage(1, 0, 9, num_reasoning_tokens=7), Timings(0, 1, 1))
    assert usage_object([[thought]])["completion_tokens_details"] == {"reasoning_tokens": 7}
    assert responses_usage(thought)["output_tokens_details"] == {"reasoning_tokens": 7}


def test_no_prompt_at_all() -> None:
    assert usage_object([])["total_tokens"] == pytest.approx(0)
