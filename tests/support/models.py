"""Model files for tests: the real default models, and small files of no meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace import settings
from headrace.model.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL
from headrace.model.embedding.pull import ensure as ensure_embedder
from headrace.model.pull import ensure

_CHECKOUT = Path(__file__).parents[2]


def default_model_path() -> Path:
    """The default model, pulled at the first use into a folder that test runs share.

    The folder is `HEADRACE_TEST_HOME`, else `.cache/headrace` in the checkout. Safe to call from
    several processes at once: one pulls, the others wait for it.
    """
    with _shared_home():
        return ensure(DEFAULT_MODEL)


def default_embedder_path() -> Path:
    """The folder of the default embedding model, in the same place."""
    with _shared_home():
        return ensure_embedder(DEFAULT_EMBEDDER)


@contextmanager
def _shared_home() -> Iterator[None]:
    home = os.environ.get("HEADRACE_TEST_HOME", str(_CHECKOUT / ".cache" / "headrace"))
    before = os.environ.get(settings.HOME_VARIABLE)
    os.environ[settings.HOME_VARIABLE] = home
    try:
        yield
    finally:
        if before is None:
            del os.environ[settings.HOME_VARIABLE]
        else:
            os.environ[settings.HOME_VARIABLE] = before


def model_bytes(num_bytes: int, salt: bytes = b"") -> bytes:
    """`num_bytes` that begin like a model and repeat nowhere, so that a wrong splice shows."""
    words = b"".join((b"%07d|" % number) + salt for number in range(num_bytes // 8 + 1))
    return (b"GGUF" + words)[:num_bytes]
