"""What dropping turns by turning keys costs in truth: logits after a shift beside exact ones.

    .venv/bin/python bench/shift.py [--model FILE] [--kept 768] [--new 64]

A text of `data/alice.txt` is a conversation: a beginning of 64 tokens, a part that is dropped, a
part that is kept, and new tokens. *shifted* takes the kept part's banks over to their new
positions; *exact* computes beginning, kept part and new tokens anew; *without* leaves the kept part
out, to show what it is worth. KL divergence (nats a token, of exact from the other) and top-1
agreement are over all new tokens. Below: how long moving takes, and computing the same tokens.
"""

from __future__ import annotations

import statistics
import time
from array import array
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from headrace.bench import opening
from headrace.commands.telling import told_plainly
from headrace.engine.shifting import Kept, moves
from headrace.model import gguf, native
from headrace.model.interface import Move, Span
from headrace.model.native import NativeModel
from headrace.model.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "data" / "alice.txt"
NUM_FIRST = 64
CHUNK = 256
WINDOWS = 4
Rows = NDArray[np.float64]


class Bench:
    """A model, and three tables of banks that share nothing."""

    def __init__(self, model: NativeModel, num_tokens: int) -> None:
        self.model = model
        each = -(-num_tokens // model.spec.bank_size)
        model.allocate(3 * each)
        self.tables = [array("i", range(i * each, (i + 1) * each)) for i in range(3)]

    def compute(self, table: int, tokens: array[int], start: int, num_logits: int = 0) -> Rows:
        """Tokens from `start` on; log probabilities after the last `num_logits`."""
        end = len(tokens) - num_logits
        for at in range(start, end, CHUNK):
            part = tokens[at : min(at + CHUNK, end)]
            self.model.step([Span(part, at, self.tables[table], 0)])
        if not num_logits:
            return np.empty((0, 0))
        self.model.step([Span(tokens[end:], end, self.tables[table], num_logits)])
        rows = np.array([self.model.logits(row) for row in range(num_logits)], np.float64)
        top = rows.max(-1, keepdims=True)
        return np.asarray(rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True)))

    def move(self, kept: Kept) -> float:
        """Seconds to bring what is kept from the first table to the second."""
        began_at = time.perf_counter()
        size = self.model.spec.bank_size
        found = moves(kept, kept.end, self.tables[0], self.tables[1], size)
        self.model.move([Move(*move) for move in found])
        return time.perf_counter() - began_at


class Divergence:
    """Of one way from the exact one."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.is_equal: list[bool] = []

    def add(self, exact: Rows, other: Rows) -> None:
        self.kl += (np.exp(exact) * (exact - other)).sum(-1).tolist()
        self.is_equal += (exact.argmax(-1) == other.argmax(-1)).tolist()

    def __str__(self) -> str:
        return (
            f"KL {statistics.mean(self.kl):.4f} (median {statistics.median(self.kl):.4f}), "
            f"top-1 {statistics.mean(self.is_equal):.1%} of {len(self.kl)}"
        )


def measure(bench: Bench, text: array[int], dropped: int, kept: int, new: int) -> str:
    shifted, without = Divergence(), Divergence()
    move_s, compute_s = [], []
    length = NUM_FIRST + dropped + kept + new
    for window in range(WINDOWS):
        part = text[window * length : (window + 1) * length]
        if len(part) < length:
            break
        now = part[:NUM_FIRST] + part[NUM_FIRST + dropped :]
        bench.compute(0, part[:-new], 0)
        move_s.append(bench.move(Kept(NUM_FIRST, dropped, NUM_FIRST + kept)))
        approximate = bench.compute(1, now, len(now) - new, new)
        began_at = time.perf_counter()
        bench.compute(2, now[:-new], 0)
        compute_s.append(time.perf_counter() - began_at)
        exact = bench.compute(2, now, len(now) - new, new)
        shifted.add(exact, approximate)
        without.add(exact, bench.compute(2, now[:NUM_FIRST] + now[-new:], 0, new))
    return (
        f"dropped {dropped}\n  shifted: {shifted}\n  without: {without}\n"
        f"  moving {statistics.median(move_s) * 1e3:.1f} ms, "
        f"computing {statistics.median(compute_s) * 1e3:.0f} ms"
    )


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--kept", default=768, show_default=True)
@click.option("--new", default=64, show_default=True)
@click.option("--dropped", multiple=True, default=(100, 500), show_default=True)
def main(model: str | None, kept: int, new: int, dropped: tuple[int, ...]) -> None:
    with told_plainly():
        file = gguf.read(Path(opening.model_path(model)))
        tokenizer = Tokenizer.from_metadata(file.metadata)
        bench = Bench(native.load(file), NUM_FIRST + max(dropped) + kept + new)
        text = array("i", tokenizer.encode(TEXT.read_text("utf-8")))
        for number in dropped:
            click.echo(measure(bench, text, number, kept, new))


if __name__ == "__main__":
    main()
