"""What the native core goes on from in the middle of a bank are the bits that it would compute."""

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.events import Choice
from support.gguf_models import ModelShape, write_model

strangers = (f"stranger {number}" for number in count())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_model(path, ModelShape(context_length=400))
    with Engine.load(path, threads=1) as engine:
        yield engine


def ask(engine: Engine, tokens: list[int], tenant: str) -> Choice:
    request = Request(
        token_ids=tokens, max_tokens=3, ignore_eos=True, logprobs=True, tenant=tenant, seed=1
    )
    return engine.generate_sync(request).choice


turns = st.lists(
    st.tuples(st.integers(0, 150), st.lists(st.integers(3, 250), min_size=1, max_size=40)),
    min_size=2,
    max_size=6,
)


@given(turns)
def test_whatever_begins_like_something_else(
    engine: Engine, turns: list[tuple[int, list[int]]]
) -> None:
    text: list[int] = []
    tenant = next(strangers)
    for num_kept, more in turns:
        text = [*text[:num_kept], *more]
        known, alone = ask(engine, text, tenant), ask(engine, text, next(strangers))
        assert alone.usage.num_cached_tokens == 0
        assert known.token_ids == alone.token_ids
        assert known.logprobs == alone.logprobs
        text += known.token_ids


def test_the_next_turn_computes_its_own_tokens_only(engine: Engine) -> None:
    text = [5, 6, 7] * 15
    first = ask(engine, text, "alice")
    text += first.token_ids
    second = ask(engine, [*text, 8, 9], "alice")
    # The last token was said, and not yet computed.
    assert second.usage.num_cached_tokens == len(text) - 1
