"""How right the answers are: perplexity, KL divergence, top-1 agreement with a float32 reference.

    .venv/bin/python bench/quality.py [--model FILE] [--peer-python PATH] [--json]

Everyone gets the same tokens: the first 4,000 of `data/alice.txt`, as one window, so that every
position up to 3,999 counts. The reference computes in float32 NumPy on the file's dequantized
weights; we and llama.cpp compute from the file itself, quantized activations included. Logits are
streamed in chunks of rows, never held whole. Needs the development tools (numpy, gguf).
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from headrace.bench import opening, peers, worker
from headrace.bench.remote import Worker

HERE = Path(__file__).parent
CHUNK = 125
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """Against the reference, over all predicted tokens."""

    perplexity: float
    mean_kl: float
    """Nats a token, of the reference's distribution from this one."""
    top1_agreement: float


@dataclass
class Tally:
    """Sums over chunks of rows."""

    num_tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0
    num_agreed: int = 0

    def add(self, truth: Rows, rows: Rows, targets: NDArray[np.int64]) -> None:
        """`truth` and `rows`: (len(targets), vocabulary) logits; `targets`: what came next."""
        expected, given = log_softmax(truth), log_softmax(rows)
        self.num_tokens += len(targets)
        self.nll -= float(given[np.arange(len(targets)), targets].sum())
        self.kl += float((np.exp(expected) * (expected - given)).sum())
        self.num_agreed += int((truth.argmax(-1) == rows.argmax(-1)).sum())

    def result(self) -> Quality:
        return Quality(
            perplexity=math.exp(self.nll / self.num_tokens),
            mean_kl=self.kl / self.num_tokens,
            top1_agreement=self.num_agreed / self.num_tokens,
        )


class Reference:
    """The float32 forward pass; keeps what goes into the head and gives logits in chunks."""

    def __init__(self, path: Path, tokens: list[int]) -> None:
        sys.path.insert(0, str(HERE.parent / "tests"))
        self._model: Any = importlib.import_module("support.reference").ReferenceModel(path)
        self._hidden = self._model.hidden(tokens)

    def chunks(self) -> Iterator[Rows]:
        for start in range(0, len(self._hidden), CHUNK):
            yield self._model.head(self._hidden[start : start + CHUNK])


def log_softmax(logits: Rows) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def judge(reference: Reference, rows: Iterable[Rows], tokens: list[int]) -> Quality:
    """Compare `rows`, in the reference's chunks, with it."""
    tally = Tally()
    following = np.array(tokens[1:])
    for index, (truth, given) in enumerate(zip(reference.chunks(), rows, strict=True)):
        targets = following[index * CHUNK : (index + 1) * CHUNK]
        tally.add(truth[: len(targets)], given[: len(targets)], targets)
    return tally.result()


def from_worker(started: Worker, tokens: list[int]) -> Iterator[Rows]:
    for data in started.logits(tokens, CHUNK):
        yield np.frombuffer(data, np.float32).reshape(-1, started.vocab_size)


def bars(ours: Quality, llama: Quality, reference: Quality) -> list[tuple[str, float, str, bool]]:
    """(what, measured, bar, met)."""
    drift = abs(ours.perplexity / reference.perplexity - 1)
    against_llama = ours.mean_kl / llama.mean_kl
    return [
        ("perplexity off by", drift, "≤ 0.01", drift <= 0.01),
        ("mean KL", ours.mean_kl, "≤ 0.005", ours.mean_kl <= 0.005),
        ("top-1 agreement", ours.top1_agreement, "≥ 0.95", ours.top1_agreement >= 0.95),
        ("KL to llama.cpp's", against_llama, "≤ 1.1", against_llama <= 1.1),
    ]


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--text", type=Path, default=HERE / "data" / "alice.txt", show_default=True)
@click.option("--num-tokens", default=4000, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--isa", default=None)
@click.option("--peer-python", type=Path, default=None)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str | None,
    text: Path,
    num_tokens: int,
    threads: int | None,
    isa: str | None,
    peer_python: Path | None,
    as_json: bool,
) -> None:
    path = opening.model_path(model)
    tokens = opening.tokenize(path, text.read_text(encoding="utf-8"))[:num_tokens]
    if len(tokens) < num_tokens:
        raise click.ClickException(f"{text} has only {len(tokens)} tokens, not {num_tokens}")
    python = peers.peer_python(peer_python, lambda line: click.echo(line, err=True))
    click.echo(f"reference: {len(tokens)} tokens in float32 …", err=True)
    reference = Reference(path, tokens)
    found = {"reference": judge(reference, reference.chunks(), tokens)}
    with Worker("headrace", worker.command(path, "core", threads, isa)) as started:
        found["headrace"] = judge(reference, from_worker(started, tokens), tokens)
    with peers.start("llama.cpp", python, path, threads or opening.num_threads()) as started:
        found["llama.cpp"] = judge(reference, from_worker(started, tokens), tokens)
    verdict = bars(found["headrace"], found["llama.cpp"], found["reference"])
    if as_json:
        click.echo(json.dumps({name: asdict(quality) for name, quality in found.items()}, indent=2))
        return
    click.echo(f"{'':12}{'perplexity':>12}{'mean KL':>12}{'top-1':>10}")
    for name, quality in found.items():
        click.echo(
            f"{name:12}{quality.perplexity:12.3f}{quality.mean_kl:12.5f}"
            f"{quality.top1_agreement:10.2%}"
        )
    for what, measured, bar, is_met in verdict:
        click.echo(f"{'met ' if is_met else 'MISSED':7} {what}: {measured:.4g} (bar {bar})")


if __name__ == "__main__":
    main()
