from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.text import TextStream
from headrace.errors import InvalidRequest

_CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from(
            [b"ab", b"a", b"b", b"aab", b"\n", b"", "é😀".encode(), b"\xf0\x9f", b"\xe2"]
        ),
    ),
    max_size=20,
)
_STOPS = st.lists(
    st.one_of(
        st.text("ab\n", min_size=1, max_size=5), st.sampled_from(["é", "😀", "\ufffd", "aé"])
    ),
    max_size=4,
).map(tuple)


def _stream(chunks: list[bytes], stop: tuple[str, ...] = ()) -> TextStream:
    return TextStream(chunks.__getitem__, stop)


def _deltas(chunks: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    stream = _stream(chunks, stop)
    return [*(stream.push(token) for token in range(len(chunks))), stream.finish()]


def _cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` before the stop string that is complete first, the longest of those: the definition,
    character by character."""
    for end in range(len(text) + 1):
        ending = [word for word in stop if text[:end].endswith(word)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@settings(deadline=None)
@given(_CHUNKS, _STOPS)
def test_deltas_join_to_the_text_before_the_stop(
    chunks: list[bytes], stop: tuple[str, ...]
) -> None:
    whole = b"".join(chunks).decode(errors="replace")
    assert "".join(_deltas(chunks, stop)) == _cut(whole, stop)


@settings(deadline=None)
@given(_CHUNKS, _STOPS, st.binary(max_size=6))
def test_what_was_said_stays_said(chunks: list[bytes], stop: tuple[str, ...], more: bytes) -> None:
    """Whatever comes next: no delta has a piece of a character or of a stop string."""
    said = "".join(_deltas(chunks, stop)[:-1])
    whole = (b"".join(chunks) + more).decode(errors="replace")
    assert _cut(whole, stop).startswith(said)


@settings(deadline=None)
@given(_CHUNKS, _STOPS)
def test_nothing_is_held_back_without_need(chunks: list[bytes], stop: tuple[str, ...]) -> None:
    """What is held may still become a stop string or a character."""
    stream = _stream(chunks, stop)
    said = "".join(stream.push(token) for token in range(len(chunks)))
    if stream.stopped is not None:
        return
    data = b"".join(chunks)
    sure = data[: len(data) - _num_unfinished(data)]
    held = sure.decode(errors="replace").removeprefix(said)
    assert not held or any(word.startswith(held) for word in stop)


def _num_unfinished(data: bytes) -> int:
    """Bytes at the end of `data` that more bytes could make a character of."""
    rests = (b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf", b"\xbf\xbf", b"\xbf\xbf\xbf")
    for length in range(1, min(3, len(data)) + 1):
        if any(_is_character(data[-length:] + rest) for rest in rests):
            return length
    return 0


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@settings(deadline=None)
@given(_CHUNKS, _STOPS)
def test_covered_tokens_are_those_whose_text_is_out(
    chunks: list[bytes], stop: tuple[str, ...]
) -> None:
    stream = _stream(chunks, stop)
    said = ""
    for token in range(len(chunks)):
        said += stream.push(token)
        if stream.stopped is None:
            data = b"".join(chunks[: stream.num_covered])
            whole = data[: len(data) - _num_unfinished(data)].decode(errors="replace")
            assert said.startswith(whole)
            assert stream.num_covered == token + 1 or len(said) < len(
                b"".join(chunks[: stream.num_covered + 1]).decode(errors="replace")
            )
    said += stream.finish()
    assert stream.num_tokens == len(chunks)
    if stream.stopped is None:
        assert stream.num_covered == len(chunks)


def test_characters_come_whole() -> None:
    assert _deltas([b"\xf0", b"\x9f\x98", b"\x80!", b"\xc3"]) == ["", "", "😀!", "", "\ufffd"]


def test_broken_bytes_are_replaced_as_soon_as_they_are_sure() -> None:
    assert _deltas([b"\xff", b"\xf0\x9f", b"a", b"\xe2\x82", b"\xe2\x82\xac"]) == [
        "\ufffd", "", "\ufffda", "", "\ufffd€", "",
    ]  # fmt: skip


def test_a_stop_over_several_tokens_never_shows() -> None:
    stream = _stream([b"x<", b"/", b"s>y", b"z"], ("</s>",))
    assert [stream.push(token) for token in range(4)] == ["x", "", "", ""]
    assert stream.stopped == "</s>"
    assert stream.finish() == ""


def test_what_only_looked_like_a_stop_comes_out() -> None:
    assert _deltas([b"a<", b"/", b"b", b"</s"], ("</s>",)) == ["a", "", "</b", "", "</s"]


def test_a_stop_that_begins_inside_the_beginning_of_another() -> None:
    assert _deltas([b"aa", b"ab", b"!"], ("aab",)) == ["", "a", "", ""]
    assert "".join(_deltas([b"ab", b"ca", b"bd"], ("abcabe", "cabd"))) == "ab"


def test_the_stop_that_is_complete_first_wins() -> None:
    for chunks in ([b"xabcd"], [b"xab", b"cd"], [b"x", b"a", b"b", b"c", b"d"]):
        stream = _stream(chunks, ("abcd", "bc"))
        text = "".join(stream.push(token) for token in range(len(chunks)))
        assert (text, stream.stopped) == ("xa", "bc")


def test_of_stops_complete_together_the_longest_wins() -> None:
    stream = _stream([b"xa", b"bc"], ("bc", "abc"))
    assert "".join([stream.push(0), stream.push(1)]) == "x"
    assert stream.stopped == "abc"


def test_a_stop_may_come_with_the_last_broken_byte() -> None:
    stream = _stream([b"a", b"\xe2"], ("\ufffd",))
    assert [stream.push(0), stream.push(1), stream.finish()] == ["a", "", ""]
    assert stream.stopped == "\ufffd"


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="stop string") as refusal:
        TextStream(lambda token: b"", ("a", ""))
    assert refusal.value.param == "stop"


def test_covered_tokens() -> None:
    stream = _stream([b"a", b"b<", b"", b"/", b"c", b"\xe2", b"\x82\xac"], ("</s>",))
    covered = []
    for token in range(7):
        stream.push(token)
        covered.append(stream.num_covered)
    assert covered == [1, 1, 1, 1, 5, 5, 7]


def test_a_long_stop_that_nearly_comes_often() -> None:
    stop = "a" * 5000 + "b"
    chunks = [b"a" * 100] * 200
    stream = _stream(chunks, (stop,))
    text = "".join(stream.push(token) for token in range(200))
    assert text == "a" * (20_000 - 5000)
    assert stream.finish() == "a" * 5000


def test_half_of_a_surrogate_pair_is_no_character_and_not_waited_for() -> None:
    assert _deltas([b"\xed\xa0", b"\x80!", b"\xed\x9f", b"\xbf"]) == [
        "\ufffd\ufffd",
        "\ufffd!",
        "",
        "\ud7ff",
        "",
    ]
