"""Renderings against transformers', recorded by `tests/golden/record.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from golden.chats import conversations
from headrace.errors import InvalidRequest
from headrace.model import gguf
from headrace.model.template import ChatTemplate
from support import golden

_TEMPLATES = ["joined_markers", "llama", "macros", "mistral", "qwen"]


def _render(template: ChatTemplate, case: dict[str, Any]) -> str:
    return template.render(
        case["messages"],
        case.get("tools"),
        add_generation_prompt=case.get("add_generation_prompt", True),
        **case.get("variables", {}),
    ).text


def _assert_same(template: ChatTemplate, name: str) -> None:
    for case, expected in zip(conversations(), golden.recorded("renderings")[name], strict=True):
        if "text" in expected:
            assert _render(template, case) == expected["text"]
        elif expected["error"].startswith("TemplateError: "):
            with pytest.raises(InvalidRequest) as refusal:
                _render(template, case)
            assert expected["error"].removeprefix("TemplateError: ") in str(refusal.value)
            assert refusal.value.param == "messages"
        else:
            # Where transformers stumbles over a message without content, it counts as empty.
            filled = [
                dict(message, content=message["content"] or "") for message in case["messages"]
            ]
            assert _render(template, case) == _render(template, {**case, "messages": filled})


@pytest.mark.parametrize("name", _TEMPLATES)
def test_template(name: str) -> None:
    _assert_same(ChatTemplate(golden.template_source(name), "<s>", "</s>"), name)


def test_the_default_models_template(default_model_path: Path) -> None:
    source = gguf.read(default_model_path).metadata["tokenizer.chat_template"]
    assert isinstance(source, str)
    _assert_same(ChatTemplate(source, "<s>", "</s>"), "default_model")
