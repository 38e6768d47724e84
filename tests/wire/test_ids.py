import re
import time

from headrace.wire.ids import (
    chat_id,
    completion_id,
    fingerprint,
    item_id,
    request_id,
    response_id,
    tool_call_id,
    ulid,
)

UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
ULID = "0[0-9a-hjkmnp-tv-z]{25}"


def test_forms() -> None:
    assert re.fullmatch(f"chatcmpl-{UUID4}", chat_id())
    assert re.fullmatch(f"cmpl-{UUID4}", completion_id())
    assert re.fullmatch(f"resp_{ULID}", response_id())
    assert re.fullmatch(f"req_{ULID}", request_id())
    assert re.fullmatch("[0-9a-z]{9}", tool_call_id("chatcmpl-1", 0, 0))
    assert re.fullmatch("fp_[0-9a-f]{10}", fingerprint("model and numerics"))


def test_a_ulid_says_when_it_was_made() -> None:
    # The example of the first ULID library.
    assert ulid(1_469_918_176_385_000_000).startswith("01aryz6s41")
    assert ulid(0).startswith("0000000000")


def test_later_ulids_sort_later() -> None:
    made = [ulid(at_us * 1000) for at_us in range(1_770_770_815_000_000, 1_770_770_815_003_000, 7)]
    assert made == sorted(made)
    assert ulid(time.time_ns() - 10**9) < ulid()


def test_ids_differ() -> None:
    at_ns = time.time_ns()
    assert len({ulid(at_ns) for _ in range(1000)}) == 1000
    calls = {tool_call_id(a, choice, i) for a in "ab" for choice in range(9) for i in range(9)}
    assert len(calls) == 2 * 9 * 9


def test_what_belongs_to_an_answer_follows_from_its_id() -> None:
    answer = "resp_01k1x6w9ane6d8rfxm05cb45yk"
    assert item_id("msg", answer, 0) == "msg_01k1x6w9ane6d8rfxm05cb4500"
    assert item_id("fc", answer, 33) == "fc_01k1x6w9ane6d8rfxm05cb4511"
    assert tool_call_id(answer, 0, 1) == tool_call_id(answer, 0, 1)
    assert fingerprint("a") != fingerprint("b")
