"""The registry: which name means which model, before, while and after they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.memory import MAX_SHARE
from headrace.errors import (
    EngineClosed,
    InvalidRequest,
    ModelError,
    ModelLoading,
    ModelNotFound,
    SettingsError,
)
from headrace.model.catalogue import DEFAULT_MODEL
from headrace.server.models import (
    ModelNames,
    ModelRegistry,
    check_models,
    engine_config,
    model_id_of,
    model_names,
    threads_each,
)
from headrace.settings import DEFAULT_ALIAS, ServerSettings
from headrace.testing import scripted_engine


def fake(*models: str, **settings: object) -> ServerSettings:
    return ServerSettings(engine="fake", models=models, **settings)  # type: ignore[arg-type]


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    """Two models, an alias for each, and one with a slash."""
    settings = fake("a", "b", aliases={"fast": "a", "org/large": "b"})
    made = ModelRegistry(model_names(settings))
    made.load(settings)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("named", "model_id"),
    [
        (DEFAULT_MODEL, DEFAULT_MODEL),
        (DEFAULT_MODEL.upper(), DEFAULT_MODEL),
        ("mine", "mine"),
        ("mine.gguf", "mine"),
        ("/models/My.Q4_K_M.gguf", "My.Q4_K_M"),
        ("./dir/x.gguf", "x"),
        ("hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen/Qwen3-0.6B-GGUF"),
        ("https://example.com/a/b%20c.gguf?token=secret", "b c"),
        ("pypi:some-dist==1.0/pkg/model.Q4_1.gguf", "model.Q4_1"),
    ],
)
def test_what_models_are_called(named: str, model_id: str) -> None:
    assert model_id_of(named) == model_id


def test_a_source_of_no_known_form() -> None:
    with pytest.raises(InvalidRequest, match="names no repository"):
        model_names(ServerSettings(models=("hf:nothing",)))


def test_without_settings_it_is_the_default_model_and_the_guides_alias() -> None:
    names = model_names(ServerSettings())
    assert names == ModelNames({DEFAULT_MODEL: DEFAULT_MODEL}, {DEFAULT_ALIAS: DEFAULT_MODEL})
    assert names.default == DEFAULT_MODEL


def test_aliases() -> None:
    names = model_names(
        ServerSettings(models=("/x/a.gguf", "b"), aliases={"1": "/x/a.gguf", "2": "b", "*": "b"})
    )
    assert names.aliases == {"1": "a", "2": "b"}
    assert names.meant_by("1") == "a"
    assert names.meant_by("a") == "a"
    assert names.meant_by("anything/at all") == "b"
    assert model_names(ServerSettings(aliases={})).aliases == {}
    # A model of that name needs no alias for itself.
    assert model_names(ServerSettings(models=(DEFAULT_ALIAS,))).aliases == {}


@pytest.mark.parametrize(
    ("models", "aliases", "told"),
    [
        (("a", "b"), {"x": "c"}, "'x' means 'c', which is not served; served are: a, b"),
        (("a", "b"), {"a": "b"}, "'a' is a model's own name"),
        (("a", "b"), {"x": "y", "y": "a"}, "'x' means 'y'"),
        (("/1/a.gguf", "/2/a.gguf"), None, "/1/a.gguf and /2/a.gguf would both be called 'a'"),
        ((DEFAULT_MODEL, DEFAULT_MODEL.upper()), None, "both be called"),
    ],
)
def test_names_that_make_no_sense(
    models: tuple[str, ...], aliases: dict[str, str] | None, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        model_names(ServerSettings(models=models, aliases=aliases))


def test_the_model_that_writes_summaries_must_be_served() -> None:
    with pytest.raises(SettingsError, match="'nope'; there is a, x"):
        model_names(ServerSettings(models=("a",), aliases={"x": "a"}, summary_model="nope"))
    for named in ("a", "x", "none"):
        model_names(ServerSettings(models=("a",), aliases={"x": "a"}, summary_model=named))


def test_every_name_finds_its_model(registry: ModelRegistry) -> None:
    assert registry.default.id == "a"
    assert registry.resolve("a") is registry.resolve("fast") is registry.default
    assert registry.resolve("org/large").id == "b"
    assert [model.id for model in registry.served] == ["a", "b"]


def test_an_unknown_name_is_told_in_groqs_words(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve("gpt/5")
    assert caught.value.message == (
        "The model `gpt/5` does not exist or you do not have access to it."
    )
    assert caught.value.param is None
    with pytest.raises(ModelNotFound) as caught:
        registry.card("x" * 1_000_000)
    assert len(caught.value.message) < 500


def test_cards_list_models_then_aliases(registry: ModelRegistry) -> None:
    assert [card.id for card in registry.cards()] == ["a", "b", "fast", "org/large"]
    card = registry.card("fast").as_wire()
    assert card == {**registry.card("a").as_wire(), "id": "fast"}
    assert card["context_window"] == registry.default.engine.context_length
    assert registry.default.fingerprint.startswith("fp_")
    assert len(registry.default.fingerprint) == 13


def test_before_it_is_loaded_names_are_known_and_models_are_not() -> None:
    registry = ModelRegistry(model_names(fake("a", "b")))
    for ask in (registry.cards, lambda: registry.resolve("b"), lambda: registry.default):
        with pytest.raises(ModelLoading) as caught:
            ask()
        assert caught.value.retry_after_s
    with pytest.raises(ModelNotFound):
        registry.resolve("c")
    assert not registry.is_ready


def test_a_model_answers_as_soon_as_it_is_loaded() -> None:
    settings = fake("a", "b")
    registry = ModelRegistry(model_names(settings))
    seen: list[tuple[str, bool]] = []

    def open_engine(named: str, config: EngineConfig) -> Engine:
        if named == "b":
            seen.append((registry.resolve("a").id, registry.is_ready))
            with pytest.raises(ModelLoading):
                registry.resolve("b")
        return scripted_engine(config=config)

    registry.load(settings, open_engine=open_engine, style_of=lambda engine: engine.spec.name)
    assert seen == [("a", False)]
    assert registry.is_ready
    assert registry.resolve("b").style == "fake"
    registry.close()
    assert not registry.is_ready


def test_closing_closes_every_engine(registry: ModelRegistry) -> None:
    from headrace.engine.request import Request

    registry.close()
    registry.close()
    for model in registry.served:
        with pytest.raises(EngineClosed):
            model.engine.generate_sync(Request(prompt="x"))


def test_an_engine_that_comes_after_the_end_is_closed_too() -> None:
    settings = fake("a", "b")
    registry = ModelRegistry(model_names(settings))
    opened: list[Engine] = []

    def open_engine(named: str, config: EngineConfig) -> Engine:
        registry.close()
        opened.append(scripted_engine(config=config))
        return opened[-1]

    with pytest.raises(EngineClosed):
        registry.load(settings, open_engine=open_engine)
    assert len(opened) == 1
    assert opened[0]._inbox.is_closed


def test_a_style_that_fails_leaves_no_engine_behind() -> None:
    settings = fake("a")
    registry = ModelRegistry(model_names(settings))
    opened: list[Engine] = []

    def open_engine(named: str, config: EngineConfig) -> Engine:
        opened.append(scripted_engine(config=config))
        return opened[-1]

    def style_of(engine: Engine) -> object:
        raise ModelError("no style")

    with pytest.raises(ModelError, match="no style"):
        registry.load(settings, open_engine=open_engine, style_of=style_of)
    assert opened[0]._inbox.is_closed


def test_several_models_share_memory_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.server.models.free_memory", lambda: 800 * MAX_SHARE)
    assert engine_config(ServerSettings(), 1).pool_bytes is None
    assert engine_config(ServerSettings(), 2).pool_bytes == 400
    assert engine_config(ServerSettings(pool_bytes=900), 1).pool_bytes == 900
    assert engine_config(ServerSettings(pool_bytes=900), 3).pool_bytes == 300
    assert threads_each(None, 1) is None
    assert threads_each(8, 1) == 8
    assert threads_each(8, 3) == 2
    assert threads_each(1, 3) == 1
    assert (threads_each(None, 2) or 0) >= 1


def test_settings_reach_the_engine() -> None:
    settings = fake(max_running=3, max_pending=5, max_queue_s=7, context_length=100)
    config = engine_config(settings, 1)
    assert (config.max_pending, config.max_queue_s, config.context_length) == (5, 7, 100)
    assert config.scheduler.max_running == 3


def test_every_allowed_number_of_streams_makes_a_scheduler() -> None:
    for number in (1, 256):
        config = engine_config(fake(max_running=number), 1)
        assert config.scheduler.max_running == number


@pytest.mark.usefixtures("home")
def test_models_are_checked_before_anything_is_fetched(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model")
    models = (DEFAULT_MODEL, "nobody", str(broken), str(tmp_path / "none.gguf"))
    problems = [error.message for error in check_models(model_names(fake(*models)))]
    assert len(problems) == 3
    assert "nobody" in problems[0]
    assert "broken.gguf" in problems[1]
    assert "none.gguf does not exist" in problems[2]
