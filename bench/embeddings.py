"""Texts a second of our encoder beside sentence-transformers, on the same model and processor.

    python bench/embeddings.py [--quick] [--repeats N] [--threads N] [--json]

Both sides take their turns in one run: each case is measured `--repeats` times, alternating, and
the best of each is told. Where `sentence-transformers` is not installed, the same steps are done
with `transformers` and torch alone (tokens padded to the longest text, the mean of all tokens,
length 1), which is what it does; the output says which of the two it was.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.machine import cpu_name
from headrace.model.embedding import native, pull

Embed = Callable[[Sequence[str]], Any]
ALICE = (Path(__file__).parent / "data" / "alice.txt").read_text().split()
CASES = (("short", 20, 1), ("short", 20, 32), ("long", 180, 1), ("long", 180, 32))
"""Kind of text, its words, texts a call."""


def texts_of(num_words: int, number: int) -> list[str]:
    starts = (97 * i % (len(ALICE) - num_words) for i in range(number))
    return [" ".join(ALICE[start : start + num_words]) for start in starts]


def peer(folder: Path, threads: int, max_tokens: int) -> tuple[str, Embed]:
    """What to compare with, and its name and version. Both sides read as much of a long text."""
    import torch

    torch.set_num_threads(threads)
    try:
        library: Any = importlib.import_module("sentence_transformers")
    except ImportError:
        return _by_transformers(folder, max_tokens)
    model = library.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = max_tokens
    name = f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    return name, lambda texts: model.encode(
        list(texts), batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
    )


def _by_transformers(folder: Path, max_tokens: int) -> tuple[str, Embed]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()

    def embed(texts: Sequence[str]) -> Any:
        encodings = tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        with torch.inference_mode():
            rows = model(input_ids=ids, attention_mask=mask).last_hidden_state
            summed = (rows * mask[..., None]).sum(1)
            return torch.nn.functional.normalize(summed, dim=1).numpy()

    name = f"transformers {importlib.metadata.version('transformers')} (no sentence-transformers)"
    return name, embed


def seconds(embed: Embed, texts: Sequence[str], least_s: float) -> float:
    """Of one call, the mean over at least `least_s`."""
    began_at, num_calls = time.perf_counter(), 0
    while (took_s := time.perf_counter() - began_at) < least_s or not num_calls:
        embed(texts)
        num_calls += 1
    return took_s / num_calls if num_calls else took_s


def measure(ours: Embed, theirs: Embed, repeats: int, least_s: float) -> list[dict[str, Any]]:
    rows = []
    for kind, num_words, batch in CASES:
        texts = texts_of(num_words, batch)
        cosine = float(np.min(np.sum(np.asarray(ours(texts)) * np.asarray(theirs(texts)), axis=1)))
        best = [float("inf")] * 2
        for _ in range(repeats):
            for side, embed in enumerate((ours, theirs)):
                best[side] = min(best[side], seconds(embed, texts, least_s))
        rates = [batch / each for each in best]
        rows.append(
            {
                "texts": kind,
                "batch": batch,
                "ours_per_s": rates[0],
                "theirs_per_s": rates[1],
                "ratio": rates[0] / rates[1],
                "least_cosine": cosine,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="one short repeat: does it run?")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = pull.ensure("all-minilm-l6-v2")
    embedder = native.load(folder, threads=given.threads)
    name, theirs = peer(folder, embedder.num_threads, embedder.max_tokens)
    repeats, least_s = (1, 0.05) if given.quick else (given.repeats, 1.0)
    rows = measure(lambda texts: embedder.embed(texts).vectors, theirs, repeats, least_s)
    versions = {"torch": importlib.metadata.version("torch"), "peer": name}
    machine = {
        "cpu": cpu_name(),
        "threads": embedder.num_threads,
        "isa": embedder.isa,
        "python": platform.python_version(),
    }
    if given.json:
        print(json.dumps({"machine": machine, "versions": versions, "cases": rows}, indent=2))
        return
    print(
        f"{machine['cpu']}, {embedder.num_threads} threads, {embedder.isa}; {name}, torch "
        f"{versions['torch']}"
    )
    for row in rows:
        print(
            f"{row['texts']:5} x{row['batch']:<2}  ours {row['ours_per_s']:8.1f}/s   "
            f"theirs {row['theirs_per_s']:8.1f}/s   {row['ratio']:.2f} x   "
            f"cosine at least {row['least_cosine']:.6f}"
        )


if __name__ == "__main__":
    main()
