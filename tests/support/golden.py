"""Golden files as tests want them: vocabularies as GGUF metadata, recorded answers, templates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from headrace.model.gguf import Value
from headrace.model.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[1] / "golden"
CONTROL_KIND, NORMAL_KIND = 3, 1


def recorded(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def template_source(name: str) -> str:
    return (FOLDER / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def metadata(kind: str, *, control: tuple[str, ...] = (), **more: Value) -> dict[str, Value]:
    """A small vocabulary's metadata: `kind` is "byte_level" or "scored". `control` tokens come
    after the file's own; `more` are further `tokenizer.ggml.` keys."""
    vocabulary = recorded(f"vocabulary_{kind}")
    vocabulary["tokens"] += control
    vocabulary["token_type"] += [CONTROL_KIND] * len(control)
    if "scores" in vocabulary:
        vocabulary["scores"] += [0.0] * len(control)
    named: dict[str, Value] = {
        "model": "gpt2" if kind == "byte_level" else "llama",
        "bos_token_id": vocabulary["tokens"].index("<s>"),
        "eos_token_id": vocabulary["tokens"].index("</s>"),
        **{name: tuple(values) for name, values in vocabulary.items()},
        **more,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


@cache
def byte_level(pre: str, control: tuple[str, ...] = ()) -> Tokenizer:
    return Tokenizer.from_metadata(metadata("byte_level", control=control, pre=pre))


@cache
def scored(*, has_prefix: bool) -> Tokenizer:
    return Tokenizer.from_metadata(metadata("scored", add_space_prefix=has_prefix))
