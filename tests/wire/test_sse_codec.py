from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.sse import (
    DONE,
    PING,
    EventDecoder,
    ServerSentEvent,
    frame,
    json_frame,
    retry,
)

LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=5)
LINES = st.lists(LINE, min_size=1, max_size=3).map("\n".join)
NAME = st.none() | LINE.filter(bool)


def decoded(data: bytes, cuts: list[int] | None = None) -> list[ServerSentEvent]:
    decoder = EventDecoder()
    places = [0, *sorted(cuts or []), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_frames() -> None:
    assert frame(b"a") == b"data: a\n\n"
    assert frame(b"a\nb", event="x", event_id="7") == b"event: x\nid: 7\ndata: a\ndata: b\n\n"
    assert json_frame({"a": "<"}, "error") == b'event: error\ndata: {"a":"\\u003c"}\n\n'
    assert frame(b"[DONE]") == DONE
    assert PING == b": ping\n"
    assert retry(1.5) == b"retry: 1500\n"


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b"])
def test_names_are_one_line(name: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        frame(b"", event=name)
    with pytest.raises(ValueError, match="one line"):
        frame(b"", event_id=name)


@given(st.lists(st.tuples(LINES, NAME, NAME), max_size=4), st.data())
def test_what_was_written_is_read_at_all_cuts(
    written: list[tuple[str, str | None, str | None]], data: st.DataObject
) -> None:
    stream = PING.join(
        frame(text.encode(), event=event, event_id=name) for text, event, name in written
    )
    end = data.draw(st.sampled_from([b"\n", b"\r", b"\r\n"]))
    stream = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + stream.replace(b"\n", end)
    expected, last = [], ""
    for text, event, name in written:
        last = name or last
        expected.append(ServerSentEvent(text, event or "message", last))
    assert decoded(stream) == expected
    assert decoded(stream, list(range(len(stream)))) == expected
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    assert decoded(stream, cuts) == expected


MIXED = (
    b"\xef\xbb\xbfdata: \xc3\xa9\r\ndata:b\rdata\n\r\n: note\n\nid: 5\nretry: 250\nevent: x\n\n"
    b"data:  two\nunknown: y\nid: \0\n\ndata: [DONE]\r\r"
)


def test_every_split_in_two_gives_the_same() -> None:
    expected = [
        ServerSentEvent("é\nb\n"),
        ServerSentEvent(" two", "message", "5"),
        ServerSentEvent("[DONE]", "message", "5"),
    ]
    for cut in range(len(MIXED) + 1):
        assert decoded(MIXED, [cut]) == expected, cut
        assert decoded(MIXED, [cut, min(cut + 1, len(MIXED))]) == expected, cut


def test_an_empty_piece_changes_nothing() -> None:
    decoder = EventDecoder()
    pieces = [b"data: a\r", b"", b"\n\r", b"", b"\ndata: b\n", b"", b"\n"]
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert [event.data for event in events] == ["a", "b"]


def test_retry_takes_whole_numbers_only() -> None:
    decoder = EventDecoder()
    decoder.feed(b"retry: 1.5\nretry: -1\nretry:\nretry: \xd9\xa1\n")
    assert decoder.retry_s is None
    decoder.feed(b"retry: 2500\n")
    assert decoder.retry_s == 2.5


def test_a_cut_stream_has_no_last_event() -> None:
    assert decoded(b"data: a\n\ndata: b\n") == [ServerSentEvent("a")]


def test_an_event_without_data_is_none_and_its_name_is_forgotten() -> None:
    assert decoded(b"event: x\n\ndata\n\n") == [ServerSentEvent("")]


def test_broken_text_is_replaced() -> None:
    assert decoded(b"data: a\xff\n\n") == [ServerSentEvent("a\ufffd")]


def test_a_mark_in_the_middle_is_text() -> None:
    marked = decoded(b"data: a\n\n\xef\xbb\xbfdata: b\ndata: \xef\xbb\xbf\n\n")
    assert marked == [ServerSentEvent("a"), ServerSentEvent("\ufeff")]
