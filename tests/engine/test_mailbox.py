import asyncio
import threading
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from headrace.engine.admission import Admission
from headrace.engine.mailbox import (
    Cancel,
    Inbox,
    LoopReader,
    Submission,
    Submit,
    ThreadReader,
)
from headrace.engine.outbox import Outbox
from headrace.engine.request import Request
from headrace.errors import EngineClosed, EngineOverloaded
from headrace.events import Delta, Event


def submission(name: str = "r") -> Submission:
    return Submission(name, Request(prompt="a"), array("i", [1]), 9, 0, ThreadReader(), 0.0)


def delta(start: int, text: str) -> Delta:
    return Delta(0, start, (start,), text)


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class TestInbox:
    def test_a_long_queue_refuses_and_says_when_to_come_again(self) -> None:
        inbox = Inbox(Admission(8, max_queue_s=1.0))
        first, second = submission(), submission()
        inbox.token_s = 3.0 / len(first.prompt)
        inbox.submit(first)  # an empty queue takes any request
        assert inbox.backlog.queue_s == pytest.approx(3.0)
        with pytest.raises(EngineOverloaded) as refused:
            inbox.submit(second)
        assert refused.value.retry_after_s == pytest.approx(2.0)
        inbox.began(first)
        inbox.submit(second)
        assert inbox.num_pending == 2

    def test_commands_come_in_order_and_once(self) -> None:
        inbox = Inbox(Admission(8, 60.0))
        first, second = submission(), submission()
        inbox.submit(first)
        inbox.cancel(first)
        inbox.submit(second)
        assert inbox.drain() == [Submit(first), Cancel(first), Submit(second)]
        assert inbox.drain() == []

    def test_a_full_inbox_refuses_and_keeps_nothing(self) -> None:
        inbox = Inbox(Admission(1, 60.0))
        inbox.submit(submission())
        with pytest.raises(EngineOverloaded, match="max_pending"):
            inbox.submit(submission())
        assert len(inbox.drain()) == 1
        inbox.ended()
        inbox.submit(submission())

    def test_a_closed_inbox_refuses(self) -> None:
        inbox = Inbox(Admission(1, 60.0))
        inbox.close("gone fishing")
        inbox.close("again")
        with pytest.raises(EngineClosed, match="gone fishing"):
            inbox.submit(submission())
        assert inbox.num_pending == 0

    @pytest.mark.parametrize("wake", ["submit", "cancel", "close"])
    def test_waiting_ends_with_any_reason_to_work(self, wake: str) -> None:
        inbox = Inbox(Admission(1, 60.0))
        thread = in_thread(inbox.wait)
        {
            "submit": lambda: inbox.submit(submission()),
            "cancel": lambda: inbox.cancel(submission()),
            "close": lambda: inbox.close("x"),
        }[wake]()
        thread.join(10)
        assert not thread.is_alive()

    def test_what_came_before_waiting_is_not_slept_through(self) -> None:
        inbox = Inbox(Admission(1, 60.0))
        inbox.submit(submission())
        inbox.wait()


class TestThreadReader:
    def test_a_slow_reader_gets_merged_deltas(self) -> None:
        reader = ThreadReader()
        outbox = Outbox()
        for start, text in enumerate("abc"):
            outbox.post(reader, delta(start, text))
            outbox.flush()
        assert reader.take() == [Delta(0, 0, (0, 1, 2), "abc")]

    def test_take_waits_for_the_first_event(self) -> None:
        reader = ThreadReader()
        taken: list[Event] = []
        thread = in_thread(lambda: taken.extend(reader.take()))
        reader.receive([delta(0, "a")])
        thread.join(10)
        assert taken == [delta(0, "a")]


class TestLoopReader:
    def test_events_cross_from_another_thread(self) -> None:
        async def main() -> list[Event]:
            reader = LoopReader()

            def engine() -> None:
                outbox = Outbox()
                outbox.post(reader, delta(0, "a"))
                outbox.flush()

            in_thread(engine)
            return await reader.take()

        assert asyncio.run(main()) == [delta(0, "a")]

    def test_a_slow_reader_gets_merged_deltas(self) -> None:
        async def main() -> list[Event]:
            reader = LoopReader()
            outbox = Outbox()
            for start, text in enumerate("abc"):
                outbox.post(reader, delta(start, text))
                outbox.flush()
                await asyncio.sleep(0)
            return await reader.take()

        assert asyncio.run(main()) == [Delta(0, 0, (0, 1, 2), "abc")]

    def test_a_cancelled_reader_can_read_on(self) -> None:
        async def main() -> list[Event]:
            reader = LoopReader()
            waiting = asyncio.create_task(reader.take())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            reader.receive([delta(0, "a")])
            return await reader.take()

        assert asyncio.run(main()) == [delta(0, "a")]

    def test_two_tasks_cannot_read_one_stream(self) -> None:
        async def main() -> None:
            reader = LoopReader()
            waiting = asyncio.create_task(reader.take())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="two tasks"):
                await reader.take()
            waiting.cancel()

        asyncio.run(main())
