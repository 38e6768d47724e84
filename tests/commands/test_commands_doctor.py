"""`headrace doctor`, on this machine."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.commands import doctor
from support.gguf_models import SHAPES, write_model


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """No measuring: what is measured is not ours to test. Nothing of the user's own."""
    monkeypatch.setattr(doctor, "_bandwidth", lambda num_bytes: 40e9)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(doctor.doctor, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_what_the_bandwidth_allows(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", SHAPES["llama-untied"], quant="Q4_0")
    report = json.loads(run("--model", str(path), "--json"))
    model = report["model"]
    # The token embedding is only looked up, one row a token.
    assert 0 < model["bytes_per_token"] < path.stat().st_size
    assert model["max_decode_tok_s"] == pytest.approx(40e9 / model["bytes_per_token"])
    assert (model["quantization"], model["context_length"]) == ("Q4_0", 512)
    text = run("--model", str(path))
    assert f"at most {model['max_decode_tok_s']:.0f} tok/s" in text


def test_without_a_model_the_rest_is_still_told() -> None:
    text = run()
    assert "headrace pull" in text
    assert "40.0 GB/s" in text
    assert "Free memory" in text
    report = json.loads(run("--json"))
    assert report["model"] is None
    assert report["model_files"] == []
    assert report["free_memory_bytes"] > 0
    assert {"headrace", "python", "system", "tokenizers"} <= report["versions"].keys()


def test_a_broken_model_is_told_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"nothing")
    assert "broken.gguf" in run("--model", str(path))


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("avx512", "avx2", "portable"), "avx512 (also avx2, portable)"),
        (("portable",), "so it will be slow"),
    ],
)
def test_kernels(monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...], told: str) -> None:
    monkeypatch.setattr(doctor, "_processor", lambda: doctor.Processor("a chip", 2, sets))
    assert told in run()


def test_without_a_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> doctor.Processor:
        return doctor.Processor("a chip", 2, (), "the native core cannot be loaded")

    monkeypatch.setattr(doctor, "_processor", fail)
    text = run()
    assert "cannot be loaded" in text
    assert "Bandwidth" not in text
