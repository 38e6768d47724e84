from __future__ import annotations

import threading

from headrace.model.embedding.turns import Turns


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns.turn():
                inside += 1
                most = max(most, inside)
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert (inside, most) == (0, 1)


def test_whoever_takes_it_again_stands_behind_those_who_wait() -> None:
    turns = Turns()
    order: list[str] = []
    may_go, is_inside = threading.Event(), threading.Event()

    def greedy() -> None:
        for number in range(3):
            with turns.turn():
                is_inside.set()
                may_go.wait(10)
                order.append(f"greedy {number}")

    def patient(name: str) -> None:
        with turns.turn():
            order.append(name)

    workers = [threading.Thread(target=greedy)]
    workers[0].start()
    is_inside.wait(10)
    for i, name in enumerate(("first", "second"), start=1):
        workers.append(threading.Thread(target=patient, args=(name,)))
        workers[-1].start()
        while len(turns._waiting) < i:
            pass
    may_go.set()
    for worker in workers:
        worker.join(10)
    assert order == ["greedy 0", "first", "second", "greedy 1", "greedy 2"]


def test_an_error_hands_it_over() -> None:
    turns = Turns()
    for _ in range(2):
        try:
            with turns.turn():
                raise KeyError
        except KeyError:
            pass
    with turns.turn():
        pass


def test_one_who_was_called_and_does_not_come_calls_the_next() -> None:
    turns = Turns()
    gone, there = threading.Event(), threading.Event()
    with turns.turn():
        turns._waiting.extend((gone, there))
        turns._leave(gone)  # interrupted while it waited
        assert list(turns._waiting) == [there]
    assert there.is_set()
    turns._leave(there)  # interrupted when it had been called
    with turns.turn():
        pass
