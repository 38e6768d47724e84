"""Where headrace keeps its data. Read anew at each call: importing this decides nothing."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

HOME_VARIABLE = "HEADRACE_HOME"


def home() -> Path:
    """The data folder: `HEADRACE_HOME` if it is set, else the platform's folder for user data.

    Nothing is created; whoever writes makes the folders it needs.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_data_path("headrace", appauthor=False)


def models_dir() -> Path:
    """The folder of the model files, each under its own `.gguf` name."""
    return home() / "models"
