"""Parked banks of the native core are the bits that it would compute."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.parking.parking import Parking, ParkingConfig
from headrace.engine.request import Request
from headrace.events import Choice
from support.gguf_models import ModelShape, write_model

CONTEXT = 400


@pytest.fixture(autouse=True, scope="module")
def _always() -> Iterator[None]:
    """A model so small is computed about as quickly as it is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parking, "_is_quicker", lambda *_: True)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_model(path, ModelShape(context_length=CONTEXT))
    return path


def load(model: Path, folder: Path | None) -> Engine:
    parking = None if folder is None else ParkingConfig(folder, 10**8)
    return Engine.load(model, threads=1, config=EngineConfig(parking=parking))


def ask(engine: Engine, tokens: list[int], conversation: str | None = None) -> Choice:
    request = Request(
        token_ids=tokens,
        conversation=conversation,
        max_tokens=6,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=5,
    )
    return engine.generate_sync(request).choice


prompts = st.lists(st.integers(3, 200), min_size=40, max_size=200)


@given(prompt=prompts, more=st.lists(st.integers(3, 200), min_size=1, max_size=60))
@settings(max_examples=5, deadline=None)
def test_recomputed_cached_and_loaded_banks_give_the_same_bits(
    model: Path, tmp_path_factory: pytest.TempPathFactory, prompt: list[int], more: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("banks")
    with load(model, folder) as engine:
        first = ask(engine, prompt, "talk")
        turn = [*prompt, *first.token_ids, *more]
        cached = ask(engine, turn, "talk")
    with load(model, None) as engine:
        computed = ask(engine, turn)
    with load(model, folder) as engine:
        loaded = ask(engine, turn)
        size = engine.spec.bank_size
    assert computed.usage.num_cached_tokens == 0
    assert cached.usage.num_loaded_tokens == 0 < cached.usage.num_cached_tokens
    assert loaded.usage.num_loaded_tokens >= cached.usage.num_cached_tokens // size * size
    assert computed.token_ids == cached.token_ids == loaded.token_ids
    assert computed.logprobs == cached.logprobs == loaded.logprobs
