"""The scripts in bench/: the made model is a sound file, and quality is judged as defined."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import gguf as peer_gguf
import numpy as np
import pytest

from headrace.model import architecture, gguf
from headrace.model.roles import layout
from headrace.model.tokenizer import Tokenizer

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by name."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> Any:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


class TestMakeModel:
    def test_weights_are_sane(self, script: Any) -> None:
        maker = script("make_model")
        rng = np.random.default_rng(0)
        for kind, (make, block_bytes) in maker.BLOCKS.items():
            blocks = make(rng, 2000)
            assert blocks.shape == (2000, block_bytes)
            weights = peer_gguf.quants.dequantize(blocks, kind)
            assert abs(weights.mean()) < 0.001
            assert 0.015 < weights.std() < 0.03

    def test_byte_letters_are_those_of_byte_level_bpe(self, script: Any) -> None:
        letters = script("make_model").byte_letters()
        assert len(set(letters)) == 256
        assert letters[ord("A")] == "A" and letters[ord(" ")] == "Ġ" and letters[ord("\n")] == "Ċ"

    def test_a_small_one_is_a_sound_file(
        self, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maker = script("make_model")
        small = {"NUM_LAYERS": 8, "HIDDEN": 256, "NUM_HEADS": 4, "NUM_KV_HEADS": 2, "FFN": 512}
        for name, value in small.items():
            monkeypatch.setattr(maker, name, value)
        path = tmp_path / "small.gguf"
        maker.write(path)
        file = gguf.read(path)
        hyper = architecture.describe(file)
        assert (hyper.num_layers, hyper.vocab_size, hyper.rope_theta) == (8, 128_256, 500_000)
        assert hyper.tied_head and hyper.rope_factors is not None
        assert (min(hyper.rope_factors), max(hyper.rope_factors)) == (1, 32)
        roles = {
            (role, layer): tensor.type.name for role, layer, tensor in layout(file, hyper).by_role()
        }
        rich = [layer for layer in range(8) if roles["down", layer] == "Q6_K"]
        # llama.cpp's use_more_bits for 8 layers
        assert rich == [0, 3, 6, 7]
        assert roles["token_embedding", None] == "Q6_K" and roles["q", 0] == "Q4_K"
        assert not list(tmp_path.glob("*.part"))

    def test_its_vocabulary_is_a_tokenizer(self, script: Any) -> None:
        tokens, types, merges = script("make_model").vocabulary()
        assert len(tokens) == len(types) == len(set(tokens)) == 128_256
        tokenizer = Tokenizer.from_metadata(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "llama-bpe",
                "tokenizer.ggml.tokens": tuple(tokens),
                "tokenizer.ggml.token_type": tuple(types),
                "tokenizer.ggml.merges": tuple(merges),
            }
        )
        text = "Some words, ünïcödé and 123\n"
        assert tokenizer.decode(tokenizer.encode(text)) == text


class TestQuality:
    def test_the_same_logits_are_perfect(self, script: Any) -> None:
        rows = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
        targets = np.arange(20) % 50
        tally = script("quality").Tally()
        tally.add(rows, rows + 3, targets)  # an offset changes no probability
        found = tally.result()
        probabilities = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
        expected = np.exp(-np.log(probabilities[np.arange(20), targets]).mean())
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert found.mean_kl == pytest.approx(0, abs=1e-6)
        assert found.top1_agreement == 1

    def test_kl_of_known_distributions(self, script: Any) -> None:
        truth = np.log(np.array([[0.5, 0.5]], np.float32))
        given = np.log(np.array([[0.25, 0.75]], np.float32))
        tally = script("quality").Tally()
        tally.add(truth, given, np.array([0]))
        tally.add(truth, truth, np.array([1]))
        found = tally.result()
        kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
        assert found.mean_kl == pytest.approx(kl / 2)
        assert found.perplexity == pytest.approx((4 * 2) ** 0.5)
        assert found.top1_agreement == 0.5

    def test_chunks_meet_their_targets(self, script: Any) -> None:
        """`judge` drops the last row, which predicts nothing, wherever chunks end."""
        quality = script("quality")

        class Reference:
            def __init__(self, rows: np.ndarray) -> None:
                self._rows = rows

            def chunks(self) -> Any:
                for start in range(0, len(self._rows), quality.CHUNK):
                    yield self._rows[start : start + quality.CHUNK]

        rng = np.random.default_rng(0)
        for num_tokens in (quality.CHUNK, quality.CHUNK + 1, 2 * quality.CHUNK + 7):
            rows = rng.normal(size=(num_tokens, 9)).astype(np.float32)
            tokens = rng.integers(0, 9, num_tokens).tolist()
            reference = Reference(rows)
            whole = quality.Tally()
            whole.add(rows[:-1], rows[:-1], np.array(tokens[1:]))
            found = quality.judge(reference, reference.chunks(), tokens)
            assert found.perplexity == pytest.approx(whole.result().perplexity)


def test_memory_allowance(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(2_000_000))
    startup = script("startup")
    about = {"quantization": "Q4_1"}
    assert startup.allowed_mb(path, about) == pytest.approx(2 * 1.35 + 200)
    about["quantization"] = "Q5_K_M"
    assert startup.allowed_mb(path, about) == pytest.approx(2 * 1.7 + 200)


def test_gaps_are_those_of_the_windows(script: Any) -> None:
    interference = script("interference")
    stream = interference.Arrivals([(1.0, 1), (1.1, 1), (1.5, 1), (1.6, 1), (9.0, 1)])
    assert interference._gaps_within([stream], [(1.2, 1.55)]) == pytest.approx([400, 100])
    assert interference._gaps_within([stream], [(2.0, 3.0)]) == pytest.approx([7400])
