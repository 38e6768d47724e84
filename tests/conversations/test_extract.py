"""Sentences that carry facts are kept word for word, within their room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.conversations.condensing import condense_messages
from headrace.conversations.extract import key_lines, without_lines
from headrace.conversations.strategies import Message


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


TALK = [
    said("user", "Tell me about bread, please. By the way, my sister is called Ilvara."),
    said("assistant", "Bread is baked slowly. It takes patience."),
    said("user", "And mills? The code of the door is 4187."),
    said("assistant", "Mills turn slowly. They stand in water."),
]


def words(text: str) -> int:
    return len(text.split())


def test_names_and_numbers_are_kept_in_the_order_in_which_they_were_said() -> None:
    assert key_lines(TALK, None, 100, words) == [
        "user: By the way, my sister is called Ilvara.",
        "user: The code of the door is 4187.",
    ]


def test_an_earlier_summarys_lines_compete_with_new_ones() -> None:
    before = "user: My dog is called Bo.\n\nThey talked about dogs."
    lines = key_lines(TALK, before, 100, words)
    assert lines[0] == "user: My dog is called Bo."
    assert len(lines) == 3
    assert without_lines(before) == "They talked about dogs."


@given(
    st.lists(st.builds(said, st.sampled_from(["user", "assistant", "tool", "system"]), st.text())),
    st.text(),
    st.integers(0, 60),
)
def test_lines_fit_their_room_and_were_all_said(
    block: list[Message], before: str, room: int
) -> None:
    lines = key_lines(block, before, room, len)
    assert sum(len(f"{line}\n") for line in lines) <= room
    assert lines == key_lines(block, before, room, len)
    everything = " ".join([*before.split(), *(w for m in block for w in m["content"].split())])
    for line in lines:
        assert line.partition(": ")[2] in everything
    # What was extracted once is found again in its own lines.
    assert set(key_lines([], "\n".join(lines), 10_000, len)) <= set(lines)


def test_small_talk_alone_gives_no_lines() -> None:
    assert key_lines([said("assistant", "It is so. That is how it is.")], None, 100, words) == []


def test_a_model_is_told_the_turns_and_the_summary_before() -> None:
    (asked,) = condense_messages(TALK, "They met.")
    assert asked["role"] == "user"
    assert "They met." in asked["content"]
    assert "user: And mills? The code of the door is 4187." in asked["content"]
