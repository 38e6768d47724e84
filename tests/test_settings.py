from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from headrace import settings


def test_home_is_what_the_variable_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "data"))
    assert settings.home() == tmp_path / "data"
    assert settings.models_dir() == tmp_path / "data" / "models"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_else_the_platforms_folder(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("HEADRACE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("HEADRACE_HOME", value)
    assert settings.home() == platformdirs.user_data_path("headrace", appauthor=False)


def test_home_is_absolute_and_knows_the_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_HOME", "~/h")
    assert settings.home() == tmp_path / "h"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_HOME", "here")
    assert settings.home() == tmp_path / "here"


def test_looking_a_model_up_imports_nothing_that_fetches() -> None:
    slow = ["urllib.request", "http.client", "subprocess", "huggingface_hub", "ssl"]
    code = (
        "import sys; before = set(sys.modules); import headrace.model.pull; "
        f"print([name for name in {slow} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
