"""What a journal's segments say of its streams, when the process that wrote them is dead.

In: segments. Out: streams as they were left, without what is broken. Thread: any.
Next: `journal.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.engine.mailbox import Reader
from headrace.engine.past import Ended, Past, Said
from headrace.errors import JournalFailed
from headrace.streams import records
from headrace.streams.records import Gone, Opened, Over
from headrace.streams.segments import failing, numbers_in, path_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A stream as a dead process left it."""

    id: str
    header: Mapping[str, Any]
    num_choices: int
    opened_at: float
    """Unix seconds, as all moments here."""
    past: Past
    """In the order in which it was said, choices interleaved."""
    ended_at: float | None
    """When its last choice ended; None where one has more to say."""

    def past_of(self, first_choice: int, num_choices: int) -> Past:
        """The part of some choices, counted from 0: what one prompt of several has said."""
        return [
            Said(one.choice - first_choice, one.token_ids, one.logprobs)
            if isinstance(one, Said)
            else Ended(one.choice - first_choice, one.how)
            for one in self.past
            if first_choice <= one.choice < first_choice + num_choices
        ]


@dataclass(slots=True)
class Traced:
    """Where a journal is with a stream that is not gone."""

    number: int
    num_choices: int
    first_segment: int = 0
    num_records: int = 0
    num_said: dict[int, int] = field(default_factory=dict)
    """Tokens on record of each choice that has started."""
    ended: set[int] = field(default_factory=set)
    readers: list[Reader] = field(default_factory=list)
    failure: JournalFailed | None = None
    """Why something of it could not be kept; nothing later is."""

    @property
    def is_over(self) -> bool:
        return len(self.ended) == self.num_choices


def recover(folder: Path) -> list[Recovered]:
    """The streams in a journal's folder that are not gone, eldest first. What is broken or half
    written is left out, and what followed it. Raises `JournalFailed` where it may not be read."""
    with failing(folder):
        return [recovered for recovered, _ in read(folder, numbers_in(folder))]


def read(folder: Path, numbers: Sequence[int]) -> list[tuple[Recovered, Traced]]:
    """The streams in the segments of those numbers that are not gone. Raises `OSError`."""
    finds: dict[int, _Find] = {}
    for number in numbers:
        _read_segment(path_of(folder, number), number, finds)
    return [(find.recovered(), find.stream) for find in finds.values() if not find.is_gone]


def _read_segment(path: Path, number: int, finds: dict[int, _Find]) -> None:
    """Add what the segment says to `finds`."""
    data = path.read_bytes()
    num_whole = len(records.MAGIC) if data.startswith(records.MAGIC) else 0
    for record, stream, index, end in records.decode(data):
        num_whole = end
        if isinstance(record, Opened):
            finds.setdefault(stream, _Find(record, Traced(stream, record.num_choices, number)))
        elif stream in finds:
            finds[stream].take(record, index)
    if num_whole < len(data):
        _log.warning("%s is broken %d bytes before its end", path, len(data) - num_whole)


class _Find:
    """A stream that is being read: record by record, without gaps."""

    def __init__(self, opened: Opened, stream: Traced) -> None:
        self.stream = stream
        self.is_gone = False
        self._opened = opened
        self._past: list[Said | Ended] = []
        self._ended_at: float | None = None
        stream.num_records = 1

    def take(self, record: records.Record, index: int) -> None:
        """Add a record, if it is the next one: after a gap, later ones mean nothing. A stream that
        went on after one was written has them again."""
        if isinstance(record, Gone):
            self.is_gone = True
        if index != self.stream.num_records:
            return
        self.stream.num_records += 1
        match record:
            case Said():
                said = self.stream.num_said
                said[record.choice] = said.get(record.choice, 0) + len(record.token_ids)
                self._past.append(record)
            case Over(ended, at):
                self.stream.ended.add(ended.choice)
                self._past.append(ended)
                self._ended_at = at

    def recovered(self) -> Recovered:
        opened, stream = self._opened, self.stream
        return Recovered(
            id=opened.id,
            header=opened.header,
            num_choices=opened.num_choices,
            opened_at=opened.at,
            past=self._past,
            ended_at=self._ended_at if len(stream.ended) == stream.num_choices else None,
        )
