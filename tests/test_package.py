"""`import headrace`: cheap, harmless, and everything in one line."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace import errors, events
from headrace.engine import shared
from support.gguf_models import SHAPES, write_model

PROBE = """
import json, signal, sys, threading, logging, warnings, os, locale
def state():
    return {
        "threads": threading.active_count(),
        "switch": sys.getswitchinterval(),
        "recursion": sys.getrecursionlimit(),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "handlers": len(logging.getLogger().handlers),
        "filters": len(warnings.filters),
        "environment": dict(os.environ),
        "hooks": [str(sys.excepthook), str(threading.excepthook)],
        "locale": locale.setlocale(locale.LC_ALL),
    }
before = state()
import headrace
for name in headrace.__all__:
    getattr(headrace, name)
print(json.dumps(before == state()))
"""


def test_importing_changes_no_process_setting_and_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) is True


def test_the_bare_import_loads_nothing_else() -> None:
    program = (
        "import sys, headrace; print([m for m in sys.modules if m.startswith('headrace.')"
        " or m in ('tokenizers', 'asyncio', 'click')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_all_names_are_there() -> None:
    assert dir(headrace) == sorted(headrace.__all__)
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = headrace.nonsense


def test_events_are_those_of_their_module() -> None:
    for name in ("Started", "Delta", "Finished", "Failed"):
        assert getattr(headrace, name) is getattr(events, name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", SHAPES["llama"])


class TestGenerate:
    def test_text_and_pieces_and_messages_are_the_same_answer(self, model: Path) -> None:
        def ask(prompt: object) -> headrace.Generation:
            return headrace.generate(prompt, model=model, max_tokens=20, ignore_eos=True)  # type: ignore[arg-type]

        whole = ask("hi").text
        assert "".join(ask("hi")) == whole
        assert ask([{"role": "user", "content": "hi"}]).text == whole
        assert len(ask("hi").choice.token_ids) == 20

    def test_threads_that_come_first_load_one_engine(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = []
        load = headrace.Engine.load

        def slowly(named: Any) -> headrace.Engine:
            loaded.append(named)
            time.sleep(0.05)  # long enough for all others to come meanwhile
            return load(named)

        monkeypatch.setattr(shared, "_engines", {})
        monkeypatch.setattr(headrace.Engine, "load", slowly)
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(headrace.generate, "hi", model=model, max_tokens=1) for _ in range(4)
            ]
            assert len({each.result().text for each in asked}) == 1
        assert loaded == [str(model)]

    def test_errors_come_at_once(self, model: Path) -> None:
        with pytest.raises(TypeError, match="warmth"):
            headrace.generate("hi", model=model, warmth=1)
        with pytest.raises(errors.ContextLengthExceeded):
            headrace.generate("hi " * 5000, model=model)
        with pytest.raises(headrace.HeadraceError, match="`temperature` must be"):
            headrace.generate("hi", model=model, temperature=-1)
        with pytest.raises(headrace.HeadraceError, match="nobody"):
            headrace.generate("hi", model="nobody")
