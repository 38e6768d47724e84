"""Benchmark plumbing: shapes, turns, runners and workers, on fakes. No test looks at a clock."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench import compare, figures, peers, report, worker
from headrace.bench.compare import Result
from headrace.bench.core import CoreRunner
from headrace.bench.figures import Prompts, decode, prefill
from headrace.bench.opening import Opened
from headrace.bench.remote import Worker
from headrace.errors import BenchError
from headrace.model.interface import Batch
from headrace.testing import FakeModel


class RecordingModel(FakeModel):
    """A fake model that notes what each step was asked."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.steps: list[list[tuple[list[int], int]]] = []

    def step(self, batch: Batch) -> None:
        self.steps.append([(list(span.tokens), span.position) for span in batch])
        super().step(batch)


def greedy(prompt: list[int], num_tokens: int) -> list[int]:
    """What a fake model says after `prompt`, asked one whole prompt at a time."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        model = FakeModel()
        model.allocate(16)
        runner = CoreRunner(model)
        runner.prefill([tokens])
        tokens.append(runner._first_tokens[0])
    return tokens[len(prompt) :]


class TestFigures:
    def test_names_are_unique(self) -> None:
        names = [figure.name for figure in figures.STANDARD]
        assert len(set(names)) == len(names) == 9
        assert "decode 1 at 4096" in names

    def test_bars_name_standard_figures(self) -> None:
        assert set(compare.BARS) <= {figure.name for figure in figures.STANDARD}

    def test_decode_prompts_stay_and_prefill_prompts_change(self) -> None:
        assert decode(4).prompts(1000, 0) == decode(4).prompts(1000, 1)
        assert prefill(128).prompts(1000, 0) == prefill(128).prompts(1000, 0)
        assert prefill(128).prompts(1000, 0) != prefill(128).prompts(1000, 1)

    def test_prompts_have_the_figure_s_shape(self) -> None:
        prompts = decode(3).prompts(50, 0)
        assert [len(prompt) for prompt in prompts] == [128] * 3
        assert len({tuple(prompt) for prompt in prompts}) == 3
        assert all(0 <= token < 50 for prompt in prompts for token in prompt)

    def test_ratio_compares_neighbours(self) -> None:
        # The machine slowed down fourfold in the middle; each round still says 2.
        assert figures.median_ratio([8, 8, 2, 2, 8], [4, 4, 1, 1, 4]) == 2

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
    def test_percentile(self, values: list[float], percent: int) -> None:
        found = figures.percentile(values, percent)
        assert found in values
        assert sum(value <= found for value in values) * 100 >= percent * len(values)
        smaller = [value for value in values if value < found]
        assert len(smaller) * 100 < percent * len(values)


class TestCoreRunner:
    def test_prefill_computes_every_token_once(self) -> None:
        model = RecordingModel(context_length=2048)
        model.allocate(128)
        prompt = [token % 250 for token in range(1300)]
        CoreRunner(model).prefill([prompt])
        computed = [token for [(tokens, _)] in model.steps for token in tokens]
        assert computed == prompt
        assert [position for [(_, position)] in model.steps] == [0, 512, 1024]

    def test_decode_feeds_back_what_was_sampled(self) -> None:
        prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
        expected = [greedy(prompt, 3) for prompt in prompts]
        model = RecordingModel()
        model.allocate(8)
        CoreRunner(model).decode(prompts, 3)
        fed = [[(tokens[0], position) for tokens, position in step] for step in model.steps[2:]]
        assert fed == [
            [(expected[0][step], 5 + step), (expected[1][step], 5 + step)] for step in range(3)
        ]

    def test_a_repeat_keeps_the_prompts_and_gives_the_same_tokens(self) -> None:
        model = RecordingModel()
        model.allocate(8)
        runner = CoreRunner(model)
        prompts = [list(range(20)), list(range(20, 40))]
        runner.decode(prompts, 4)
        first = model.steps[2:]
        model.steps.clear()
        runner.decode(prompts, 4)
        assert model.steps == first


class TestServe:
    def ask(self, *requests: dict[str, Any]) -> tuple[list[dict[str, Any]], bytes]:
        """Answers, and raw bytes after the last one."""
        model = FakeModel(vocab_size=40)
        model.allocate(16)
        opened = Opened(model.spec, CoreRunner(model), 0.5, 1.0, model.close)
        asked = io.BytesIO(b"".join(json.dumps(one).encode() + b"\n" for one in requests))
        out = io.BytesIO()
        worker.serve(opened, asked, out)
        out.seek(0)
        answers = [json.loads(out.readline()) for _ in range(len(requests) + 1)]
        return answers, out.read()

    def test_answers_in_order(self) -> None:
        prompts = [[1, 2, 3]]
        (about, decoded, filled, forgotten), rest = self.ask(
            {"do": "decode", "prompts": prompts, "num_generated": 2},
            {"do": "prefill", "prompts": prompts, "num_generated": 0},
            {"do": "forget"},
        )
        assert about["model"] == "fake" and about["vocab_size"] == 40 and about["load_s"] == 0.5
        assert decoded["seconds"] > 0 and filled["seconds"] > 0
        assert forgotten == {} and rest == b""

    def test_logits_of_every_position_follow_the_answer(self) -> None:
        tokens = list(range(10))
        (_, answer), data = self.ask({"do": "logits", "tokens": tokens, "chunk": 4})
        assert answer == {"rows": 10}
        model = FakeModel(vocab_size=40)
        model.allocate(1)
        rows = list(CoreRunner(model).logits(tokens, 10))
        assert data == b"".join(rows) and len(data) == 10 * 40 * 4

    def test_errors_are_answers(self) -> None:
        too_long = [[1] * 300]
        (_, answer, unknown), _ = self.ask(
            {"do": "prefill", "prompts": too_long, "num_generated": 0}, {"do": "dance"}
        )
        assert "do not hold" in answer["error"] or "past the context" in answer["error"]
        assert "dance" in unknown["error"]


STUB = """
import json, sys
print(json.dumps({"vocab_size": 3}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "decode":
        print(json.dumps({"seconds": len(request["prompts"]) * 0.5}), flush=True)
    elif request["do"] == "logits":
        print(json.dumps({"rows": 4}), flush=True)
        sys.stdout.buffer.write(bytes(4 * 3 * 4))
        sys.stdout.buffer.flush()
    elif request["do"] == "fail":
        print(json.dumps({"error": "no such luck"}), flush=True)
    else:
        print("the last words", file=sys.stderr)
        sys.exit(3)
"""


class TestRemote:
    def start(self, program: str = STUB) -> Worker:
        return Worker("stub", [sys.executable, "-c", program])

    def test_asks_and_reads(self) -> None:
        with self.start() as stub:
            assert stub.vocab_size == 3
            assert stub.decode([[1], [2]], 5) == 1.0
            assert [len(part) for part in stub.logits([1, 2, 3, 4], 3)] == [36, 12]
            assert stub.decode([[1]], 5) == 0.5

    def test_an_error_is_raised_and_the_worker_goes_on(self) -> None:
        with self.start() as stub:
            with pytest.raises(BenchError, match="stub worker says: no such luck"):
                stub.ask("fail")
            assert stub.decode([[1]], 5) == 0.5

    def test_an_early_end_is_told_with_the_last_words(self) -> None:
        with self.start() as stub, pytest.raises(BenchError, match=r"status 3.*the last words"):
            stub.ask("die")

    def test_a_worker_that_cannot_start(self) -> None:
        with pytest.raises(BenchError, match="ended early"):
            self.start("raise SystemExit(1)")


class FakeWorker:
    """A `Worker` that answers from a rule and notes the order of turns."""

    vocab_size = 100

    def __init__(
        self, name: str, log: list[str], speed: Callable[[dict[str, Any]], float] = lambda _: 1.0
    ) -> None:
        self.name, self.settings = name, dict[str, Any](threads=2)
        self._log, self._speed = log, speed

    def decode(self, prompts: Prompts, num_generated: int) -> float:
        self._log.append(self.name)
        return len(prompts) * num_generated / self._speed(self.settings)

    def prefill(self, prompts: Prompts) -> float:
        self._log.append(self.name)
        return len(prompts[0]) / self._speed(self.settings)

    def forget(self) -> None:
        self._log.append(f"{self.name} forgets")


def run(ours: Sequence[FakeWorker], others: Sequence[FakeWorker], **arguments: Any) -> list[Result]:
    return list(
        compare.compare(
            cast("list[Worker]", ours),
            cast("list[Worker]", others),
            progress=lambda _: None,
            **arguments,
        )
    )


class TestCompare:
    def test_turns_alternate_and_rotate(self) -> None:
        log: list[str] = []
        ours, theirs = FakeWorker("ours", log, lambda _: 6.0), FakeWorker("theirs", log)
        [result] = run([ours], [theirs], figures=[decode(4)], repeats=4)
        assert log[-10:] == [
            *("ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"),
            *("ours forgets", "theirs forgets"),
        ]
        assert result.median("ours") == pytest.approx(6.0)
        assert result.ratio("ours", "theirs") == pytest.approx(6.0)

    def test_the_peer_gets_its_fastest_settings(self) -> None:
        def speed(settings: dict[str, Any]) -> float:
            return 9.0 if settings.get("micro_batch") == 256 and settings["flash"] else 3.0

        peer = FakeWorker("peer", [], speed)
        [result] = run([], [peer], figures=[prefill(512)], repeats=1)
        assert result.settings["peer"] == {"flash": True, "micro_batch": 256}
        assert peer.settings == {"threads": 2, "flash": True, "micro_batch": 256}
        assert result.median("peer") == pytest.approx(9.0)

    def test_json_has_medians_ratios_and_samples(self) -> None:
        ours, theirs = FakeWorker("ours", [], lambda _: 6.0), FakeWorker("theirs", [])
        [result] = run([ours], [theirs], figures=[decode(1)], repeats=2)
        found = result.as_json(["ours"], ["theirs"])
        assert found["tok_s"] == {"ours": 6.0, "theirs": 1.0}
        assert found["ratio"] == {"ours": {"theirs": 6.0}}
        assert found["samples"]["ours"] == [6.0, 6.0]
        json.dumps(found)


class TestReport:
    def results(self) -> list[Result]:
        return [
            Result(figure, {"engine": [speed], "core": [2 * speed], "peer": [speed / 4]}, {})
            for figure, speed in ((decode(1), 310.0), (decode(16), 1000.0), (prefill(512), 3000.0))
        ]

    def test_speeds_have_the_promised_keys(self) -> None:
        found = report.speeds([*self.results(), *self._long()], "engine")
        assert found == {
            "decode_tok_s": {"1": 310.0, "16": 1000.0},
            "prefill_tok_s": {"512": 3000.0},
            "decode_at_4096_tok_s": 150.0,
        }
        assert report.speeds(self.results(), "engine")["decode_at_4096_tok_s"] is None

    def _long(self) -> list[Result]:
        return [Result(decode(1, at=4096), {"engine": [150.0]}, {})]

    def test_verdicts_judge_ratio_and_speed(self) -> None:
        first, second, _ = self.results()
        assert report.verdicts(first, "engine", {"peer": "same"}) == [
            "met: 4.00 x peer (≥ 2.1)",
            "met: 310 tok/s (≥ 300)",
        ]
        assert [line[:6] for line in report.verdicts(second, "engine", {"peer": "same"})] == [
            "MISSED",
            "MISSED",
        ]

    def test_tables_have_a_row_a_figure(self) -> None:
        results = self.results()
        assert report.engine_table(results).row_count == 3
        table = report.peers_table(results, ["engine", "core"], {"peer": "same"}, bars=True)
        assert table.row_count == 3 and len(table.columns) == 7


class TestPeerPython:
    def test_a_python_without_it_is_refused_with_the_remedy(self) -> None:
        bare = Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name
        if not bare.exists():
            bare = Path(sys.executable).resolve()
        with pytest.raises(BenchError, match=r"pip install .*llama-cpp-python"):
            peers.peer_python(bare, print)

    def test_a_missing_python_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(peers.PYTHON_VARIABLE, "/nowhere/python")
        with pytest.raises(BenchError, match="/nowhere/python"):
            peers.peer_python(None, print)

    def test_cache_follows_the_home(self, home: Path) -> None:
        assert peers.cache_dir() == home / "cache"
