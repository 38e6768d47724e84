from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.model import catalogue, store
from headrace.model.catalogue import CATALOGUE, DEFAULT_MODEL, Entry
from headrace.model.sources.base import sha256_of


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_each_entry_says_everything(entry: Entry) -> None:
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", entry.name)
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.file_name.endswith(".gguf")
    assert str(entry.spec) == entry.source
    assert min(entry.num_bytes, entry.context_length) > 0
    assert entry.architecture and entry.quantization and entry.licence and entry.description


def test_files_of_entries_do_not_meet() -> None:
    names = [entry.file_name for entry in CATALOGUE.values()]
    assert len(set(names)) == len(names)


def test_the_default_is_what_the_catalogue_says(default_model_path: Path) -> None:
    entry = CATALOGUE[DEFAULT_MODEL]
    assert default_model_path.stat().st_size == entry.num_bytes
    assert sha256_of(default_model_path) == entry.sha256
    facts = store.facts_of(default_model_path)
    assert facts == store.Facts(
        entry.architecture, entry.quantization, entry.context_length, entry.licence.lower()
    )


def test_names_are_found_in_any_case() -> None:
    assert catalogue.find("SmolLM2-135M-Instruct") is CATALOGUE["smollm2-135m-instruct"]
    assert catalogue.find("smollm2") is None


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("smollm2", DEFAULT_MODEL),
        ("smolm2-135m-instruct", DEFAULT_MODEL),
        ("SMOLLM-135m", DEFAULT_MODEL),
        ("my-model", "My-Model.Q4_0"),
        ("zzz", None),
        ("", None),
    ],
)
def test_near_names_are_suggested(typed: str, first: str | None) -> None:
    near = catalogue.closest(typed, ["My-Model.Q4_0"])
    assert (near[0] if near else None) == first
