"""llama.cpp as a benchmark worker: runs under any Python that has `llama_cpp`, without headrace.

In: one JSON request a line on stdin. Out: one JSON answer a line on stdout (`logits`: raw float32
after it). Thread: the process's own. Next: `peers.py`, which starts it and asks.

Contexts are kept between requests with their prompts inside: a repeat cuts the generated tail and
times generation alone, so the peer never pays twice for a prompt and our run is not warmed by it.
Between requests the process blocks on stdin; its threads sleep (libgomp spins about 1 ms, then
waits).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

llama: Any = importlib.import_module("llama_cpp.llama_cpp")
Array = np.ndarray[Any, Any]

MAX_BATCH = 2048
"""Tokens a `llama_decode` call may take; llama.cpp cuts it into micro-batches itself."""

Place = tuple[int, int, int, bool]
"""(token, position, sequence, whether its logits are wanted)."""


class Context:
    """One llama context with the settings of one figure."""

    def __init__(self, model: Any, num_sequences: int, positions: int, settings: dict[str, Any]):
        params = llama.llama_context_default_params()
        params.n_seq_max = num_sequences
        params.n_ctx = num_sequences * -(-positions // 256) * 256
        params.n_batch = MAX_BATCH
        params.n_ubatch = settings["micro_batch"]
        params.n_threads = settings["threads"]
        params.n_threads_batch = settings["threads"]
        params.flash_attn_type = 1 if settings["flash"] else 0
        params.kv_unified = settings["unified"]
        params.no_perf = True
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp refused a context of {params.n_ctx} positions")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(MAX_BATCH, 0, 1)
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.prompts: list[list[int]] = []
        self.first_tokens: list[int] = []

    def prefill(self, prompts: list[list[int]]) -> None:
        """Compute `prompts` from empty; afterwards `first_tokens` has each one's next token."""
        llama.llama_memory_clear(self._memory, False)
        self.first_tokens = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            places = [(token, i, sequence, i == last) for i, token in enumerate(prompt)]
            for start in range(0, len(places), MAX_BATCH):
                self._decode(places[start : start + MAX_BATCH])
            self.first_tokens.append(self._argmax(-1))
        self.prompts = prompts

    def generate(self, num_generated: int) -> float:
        """Greedy steps, one token a sequence each, after the prompts. Returns seconds."""
        for sequence, prompt in enumerate(self.prompts):
            llama.llama_memory_seq_rm(self._memory, sequence, len(prompt), -1)
        tokens = self.first_tokens
        lengths = [len(prompt) for prompt in self.prompts]
        sequences = range(len(tokens))
        begun = time.perf_counter()
        for step in range(num_generated):
            self._decode([(tokens[i], lengths[i] + step, i, True) for i in sequences])
            tokens = [self._argmax(i) for i in sequences]
        return time.perf_counter() - begun

    def logits(self, tokens: list[int], chunk: int) -> Iterator[Array]:
        """Logits of every position, (chunk, vocabulary) at a time; each is valid until the next."""
        llama.llama_memory_clear(self._memory, False)
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            self._decode([(token, start + i, 0, True) for i, token in enumerate(part)])
            rows = llama.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(rows, shape=(len(part), self._vocab_size))

    def close(self) -> None:
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def _decode(self, places: list[Place]) -> None:
        batch = self._batch
        batch.n_tokens = len(places)
        for i, (token, position, sequence, wanted) in enumerate(places):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status} for {len(places)} tokens")

    def _argmax(self, row: int) -> int:
        pointer = llama.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).argmax())


class Worker:
    """The open model and its contexts; one method a request."""

    def __init__(self, path: str) -> None:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        begun = time.perf_counter()
        self._model = llama.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._load_s = time.perf_counter() - begun
        self._contexts: dict[str, Context] = {}

    def describe(self) -> dict[str, Any]:
        package = importlib.import_module("llama_cpp")
        return {
            "version": package.__version__,
            "system": llama.llama_print_system_info().decode(),
            "vocab_size": llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)),
            "weight_bytes": llama.llama_model_size(self._model),
            "load_s": self._load_s,
        }

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time `num_generated` greedy steps after the prompts."""
        context = self._context(request)
        if context.prompts != request["prompts"]:
            context.prefill(request["prompts"])
            context.generate(2)
        return {"seconds": context.generate(request["num_generated"])}

    def prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time one prompt from an empty cache to its first token."""
        context = self._context(request)
        begun = time.perf_counter()
        context.prefill(request["prompts"])
        return {"seconds": time.perf_counter() - begun}

    def forget(self) -> dict[str, Any]:
        """Free all contexts."""
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        return {}

    def logits(self, request: dict[str, Any], out: BinaryIO) -> None:
        """Write the logits of every position of `tokens` after the answer's line."""
        context = self._context({**request, "prompts": [request["tokens"]], "num_generated": 0})
        answer(out, {"rows": len(request["tokens"])})
        for rows in context.logits(request["tokens"], request["chunk"]):
            out.write(rows.tobytes())
        out.flush()

    def _context(self, request: dict[str, Any]) -> Context:
        positions = len(request["prompts"][0]) + request["num_generated"] + 8
        num_sequences = len(request["prompts"])
        key = json.dumps([num_sequences, positions, request["settings"]], sort_keys=True)
        if key not in self._contexts:
            self._contexts[key] = Context(
                self._model, num_sequences, positions, request["settings"]
            )
        return self._contexts[key]


def quantize(source: str, target: str, num_threads: int) -> None:
    """Requantize `source` to Q4_0 with llama.cpp's own rules; atomic."""
    params = llama.llama_model_quantize_default_params()
    params.nthread = num_threads
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    part = Path(f"{target}.{os.getpid()}.part")
    if llama.llama_model_quantize(source.encode(), str(part).encode(), ctypes.byref(params)):
        part.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp cannot requantize {source}")
    part.replace(target)


def answer(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


def serve(worker: Worker, out: BinaryIO) -> None:
    answer(out, worker.describe())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "decode":
                    answer(out, worker.decode(request))
                case "prefill":
                    answer(out, worker.prefill(request))
                case "forget":
                    answer(out, worker.forget())
                case "logits":
                    worker.logits(request, out)
                case unknown:
                    answer(out, {"error": f"unknown request {unknown!r}"})
        except RuntimeError as error:
            answer(out, {"error": str(error)})


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp logs pages at load; what matters comes back as an error."""


def main() -> None:
    # Answers go to the real stdout; whatever a library prints there goes to stderr.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    llama.llama_log_set(_silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    match sys.argv[1:]:
        case ["serve", path]:
            serve(Worker(path), out)
        case ["quantize", source, target, num_threads]:
            quantize(source, target, int(num_threads))
            answer(out, {"target": target})
        case _:
            sys.exit("usage: llama_worker.py serve FILE | quantize SOURCE TARGET THREADS")


if __name__ == "__main__":
    main()
