"""Where a caller listens: an asynchronous stream of events, and a synchronous generation of text.

In: events from the mailbox. Out: the same, to whoever asked. Thread: the caller's.

Leaving is cancelling: a stream is a context manager, and what it left running stops within a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from headrace.engine.mailbox import Inbox, LoopReader, Reader, Submission, ThreadReader
from headrace.events import Choice, Delta, Event, Failed, Finished, fold
from headrace.model.interface import TokenIds

AnyReader = TypeVar("AnyReader", bound=Reader)


class Ticket(Generic[AnyReader]):
    """A submission that was accepted, and how many of its choices still speak."""

    def __init__(self, inbox: Inbox, submission: Submission, reader: AnyReader) -> None:
        self._inbox = inbox
        self._num_open = submission.request.n
        self.submission = submission
        self.reader = reader
        inbox.submit(submission)

    @property
    def is_over(self) -> bool:
        return self._num_open == 0

    def note(self, event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            self._num_open -= 1

    def cancel(self) -> None:
        if not self.is_over:
            self._inbox.cancel(self.submission)


class _Submitted(ABC):
    """What both faces know of the request they listen to."""

    @property
    @abstractmethod
    def _submission(self) -> Submission: ...

    @property
    def request_id(self) -> str:
        return self._submission.request_id

    @property
    def seed(self) -> int:
        return self._submission.seed

    @property
    def prompt_ids(self) -> TokenIds:
        """The prompt as the model sees it: send it, and the answer's ids, to go on exactly."""
        return self._submission.prompt


class Stream(_Submitted):
    """The events of one request. Made by `Engine.generate`; asks when it is entered.

        async with engine.generate(request) as stream:
            async for event in stream: ...

    Entering raises what refuses the request: `InvalidRequest`, `EngineOverloaded`, `EngineClosed`.
    After that nothing is raised: what goes wrong is a `Failed` event.
    """

    def __init__(self, submit: Callable[[LoopReader], Ticket[LoopReader]]) -> None:
        self._submit = submit
        self._entered: Ticket[LoopReader] | None = None
        self._arrived: Iterator[Event] = iter(())

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise RuntimeError("this stream was entered before; ask again with `engine.generate`")
        self._entered = self._submit(LoopReader())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        ticket = self._ticket
        while True:
            event = next(self._arrived, None)
            if event is not None:
                ticket.note(event)
                return event
            if ticket.is_over:
                raise StopAsyncIteration
            self._arrived = iter(await ticket.reader.take())

    async def collect(self) -> list[Choice]:
        """The whole answers: the fold of what is still to come. Raises what made a choice fail."""
        return fold([event async for event in self])

    def cancel(self) -> None:
        """Stop all choices; each still says its `Finished`, with reason `cancelled`."""
        self._ticket.cancel()

    @property
    def _submission(self) -> Submission:
        return self._ticket.submission

    @property
    def _ticket(self) -> Ticket[LoopReader]:
        if self._entered is None:
            raise RuntimeError(
                "enter the stream first: `async with engine.generate(...) as stream`"
            )
        return self._entered


class Generation(_Submitted):
    """The same for plain threads, and in text: iterate over it, or take `text` whole.

        for piece in headrace.generate("Why is the sky blue?"):
            print(piece, end="")

    A request for several answers (`n`) is read with `events()` or `choices`. Used as a context
    manager, or when nobody holds it any more, it stops what still runs.
    """

    def __init__(self, ticket: Ticket[ThreadReader]) -> None:
        self._ticket = ticket
        self._heard: list[Event] = []
        self._arrived: Iterator[Event] = iter(())

    def events(self) -> Iterator[Event]:
        """The events still to come. Raises nothing: what goes wrong is a `Failed` event."""
        while True:
            for event in self._arrived:
                self._ticket.note(event)
                self._heard.append(event)
                yield event
            if self._ticket.is_over:
                return
            self._arrived = iter(self._ticket.reader.take())

    def ready(self) -> list[Event]:
        """The events that are here already, maybe none. Does not wait."""
        events = [*self._arrived, *self._ticket.reader.poll()]
        for event in events:
            self._ticket.note(event)
        self._heard += events
        return events

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come. Raises what makes the generation fail."""
        if self._ticket.submission.request.n != 1:
            raise ValueError("there are several answers; iterate over `events()` instead")
        for event in self.events():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta) and event.text:
                yield event.text

    @property
    def choices(self) -> list[Choice]:
        """The whole answers, waited for. Raises what made a choice fail."""
        for _ in self.events():
            pass
        return fold(self._heard)

    @property
    def choice(self) -> Choice:
        """The first answer, waited for: its text, tokens, usage, timings and reason to end. Raises
        what made a choice fail."""
        return self.choices[0]

    @property
    def text(self) -> str:
        """The first answer's text, waited for. Raises what made a choice fail."""
        return self.choice.text

    def cancel(self) -> None:
        """Stop; what was said so far is still there to read."""
        self._ticket.cancel()

    @property
    def _submission(self) -> Submission:
        return self._ticket.submission

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()
