"""Commands on a fake model: what they do, without a file or a download."""

from __future__ import annotations

import pytest

from headrace.engine.loading import OpenedModel
from headrace.testing import END_ID, FakeModel, FakeTemplate, FakeTokenizer, saying


def give_model(monkeypatch: pytest.MonkeyPatch, model: FakeModel | str) -> FakeModel:
    """Let the commands open `model`, or one that says this text, whatever name they are given."""
    if isinstance(model, str):
        model = FakeModel(rule=saying(model.encode(), then=END_ID))

    def open_model(*_: object, **__: object) -> OpenedModel:
        return OpenedModel(model, FakeTokenizer(), FakeTemplate())

    monkeypatch.setattr("headrace.engine.loading.open_model", open_model)
    return model
