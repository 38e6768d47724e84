"""A model file becomes the three parts of an engine.

In: a name or a path. Out: model, tokenizer, template. Thread: the caller's. Next: `engine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.engine.language import Template, Tokenizer
from headrace.model import catalogue, gguf, native, pull
from headrace.model.interface import Model
from headrace.model.pull import Report, silent
from headrace.model.template import ChatTemplate
from headrace.model.tokenizer import Tokenizer as GGUFTokenizer


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What an engine is made of."""

    model: Model
    tokenizer: Tokenizer
    template: Template


def open_model(
    name: str | Path | None,
    *,
    threads: int | None = None,
    isa: str | None = None,
    report: Report = silent,
) -> OpenedModel:
    """Open a model by name or path (None: the default model), fetching it first if need be.

    `report` hears of a fetch. Raises `ModelNotFound`, `PullError`, `ModelError` and, for
    `threads` or an `isa` that cannot be, `InvalidRequest`.
    """
    path = pull.ensure(str(name or catalogue.DEFAULT_MODEL), report)
    file = gguf.read(path)
    # What is cheap to refuse first: the weights take longest.
    tokenizer = GGUFTokenizer.from_metadata(file.metadata)
    template = ChatTemplate.from_metadata(file.metadata, tokenizer)
    return OpenedModel(native.load(file, threads=threads, isa=isa), tokenizer, template)
