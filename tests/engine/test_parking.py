"""Banks on disk, on a fake model whose answers depend on what its banks really hold."""

from __future__ import annotations

import stat
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.parking.files import BankFiles
from headrace.engine.parking.parking import ParkingConfig, ParkingStats
from headrace.engine.request import Request
from headrace.engine.scheduler import SchedulerConfig
from headrace.engine.stream import Generation
from headrace.events import Finished, Started
from headrace.testing import FakeModel, ManualEngine

PROMPT = "x" * 70
"""4 whole banks of 16, and a rest."""


class House:
    """Engines that come and go, one after the other, over one folder."""

    def __init__(self, folder: Path, *, num_banks: int = 16, max_bytes: int = 10**6) -> None:
        self.folder = folder
        parking = ParkingConfig(folder, max_bytes, bytes_per_s=float("inf"))
        self.config = EngineConfig(
            pool_bytes=num_banks * 64,
            parking=parking,
            scheduler=SchedulerConfig(max_running=4),
        )
        self.engine = self.open()

    def open(self) -> ManualEngine:
        self.model = FakeModel()
        self.engine = ManualEngine(self.model, self.config)
        self.engine.run_until_idle()
        return self.engine

    def restart(self) -> None:
        self.engine.close()
        self.open()

    @property
    def stats(self) -> ParkingStats:
        return self.engine.stats().parking

    def begin(self, prompt: str = PROMPT, **settings: object) -> Generation:
        settings = {"max_tokens": 4, "ignore_eos": True, **settings}
        return self.engine.generate_sync(Request(prompt=prompt, **settings))  # type: ignore[arg-type]

    def ask(self, prompt: str = PROMPT, **settings: object) -> Generation:
        generation = self.begin(prompt, **settings)
        self.engine.run_until_idle()
        return generation

    def files(self, suffix: str = ".bank") -> list[Path]:
        return sorted(self.folder.glob("*" + suffix))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "banks")


def found(generation: Generation) -> tuple[int, int]:
    """Prompt tokens that came from memory, and from disk."""
    usage = generation.choice.usage
    return usage.num_cached_tokens - usage.num_loaded_tokens, usage.num_loaded_tokens


class TestRestart:
    def test_the_next_turn_is_warm_and_says_what_a_cold_one_says(self, house: House) -> None:
        first = house.ask(conversation="talk")
        cold = House(house.folder / "none").ask(PROMPT + "and on")
        house.restart()
        warm = house.ask(PROMPT + "and on", conversation="talk")
        assert found(first) == (0, 0)
        assert found(warm) == (0, 64)
        assert warm.choice.token_ids == cold.choice.token_ids
        assert house.model.num_computed_tokens == 76 - 64 + 3

    def test_any_request_with_that_beginning_is(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        assert found(house.ask(PROMPT[:40])) == (0, 32)

    def test_what_memory_has_is_not_read(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        house.ask(PROMPT[:40])
        assert found(house.ask()) == (32, 32)

    def test_other_requests_leave_nothing(self, house: House) -> None:
        house.ask()
        house.restart()
        assert house.files() == []
        assert found(house.ask()) == (0, 0)

    def test_tenants_share_nothing(self, house: House) -> None:
        house.ask(conversation="talk", tenant="alice")
        house.restart()
        assert found(house.ask(conversation="talk", tenant="bob")) == (0, 0)
        assert found(house.ask(conversation="talk", tenant="alice")) == (0, 64)

    def test_another_model_finds_nothing(self, house: House) -> None:
        house.ask(conversation="talk")
        house.engine.close()
        other = FakeModel(context_length=200)
        other._spec = type(other.spec)(**{**_fields(other), "identity": "other"})
        house.engine = ManualEngine(other, house.config)
        house.engine.run_until_idle()
        assert found(house.ask()) == (0, 0)

    def test_what_is_quicker_to_compute_is_not_read(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        house.engine._loop._parking._back.bank_s = 10.0
        assert found(house.ask()) == (0, 0)

    def test_only_a_turns_new_banks_are_written(self, house: House) -> None:
        house.ask(conversation="talk")
        assert house.stats.num_parked == 4
        house.ask(PROMPT + "y" * 32, conversation="talk")
        assert house.stats.num_parked == 6
        assert house.stats.num_on_disk == 6

    def test_what_waits_when_the_engine_closes_is_written(self, house: House) -> None:
        generation = house.begin(conversation="talk")
        while not generation._ticket.is_over:
            house.engine.step()
            generation.ready()
        assert len(house.files()) < 4
        house.restart()
        assert found(house.ask()) == (0, 64)

    def test_a_turn_that_breaks_off_is_not_parked(self, house: House) -> None:
        generation = house.begin(conversation="talk", max_tokens=50)
        house.engine.step()
        generation.cancel()
        house.engine.run_until_idle()
        assert house.files() == []

    def test_started_says_what_was_loaded(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        events = list(house.ask().events())
        assert isinstance(events[0], Started)
        assert events[0].num_cached_tokens == 64
        assert isinstance(events[-1], Finished)


def _fields(model: FakeModel) -> dict[str, object]:
    spec = model.spec
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


class TestForgetting:
    def test_a_forgotten_conversation_has_no_files(self, house: House) -> None:
        house.ask(conversation="talk")
        house.ask("y" * 70, conversation="talk")
        assert len(house.files()) == 8
        is_done = house.engine.forget("", "talk")
        house.engine.run_until_idle()
        assert is_done.done()
        assert house.files() == house.files(".list") == []
        house.restart()
        assert found(house.ask()) == found(house.ask("y" * 70)) == (0, 0)

    def test_banks_that_wait_to_be_written_when_it_is_forgotten_are_not(self, house: House) -> None:
        first = house.begin(conversation="talk")
        for _ in range(100):
            house.engine.step()
            if any(isinstance(event, Finished) for event in first.ready()):
                break
        # Somebody else uses the same banks, so they stay in memory.
        other = house.begin(PROMPT + "!", max_tokens=50)
        house.engine.step()
        house.engine.forget("", "talk")
        house.engine.run_until_idle()
        assert other.choice.usage.num_cached_tokens
        assert house.files() == house.files(".list") == []

    def test_what_another_conversation_has_too_stays(self, house: House) -> None:
        house.ask(PROMPT, conversation="one")
        house.ask(PROMPT + "y" * 32, conversation="two")
        house.engine.forget("", "two")
        house.engine.run_until_idle()
        assert len(house.files()) == 4
        house.restart()
        assert found(house.ask(PROMPT + "y" * 32)) == (0, 64)

    def test_another_tenants_conversation_of_that_name_stays(self, house: House) -> None:
        house.ask(conversation="talk", tenant="alice")
        house.engine.forget("bob", "talk")
        house.engine.run_until_idle()
        assert len(house.files()) == 4


class TestWhatIsWrong:
    """Nothing on disk is trusted."""

    @pytest.fixture
    def parked(self, house: House) -> House:
        house.ask(conversation="talk")
        house.engine.close()
        return house

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data[:-1],
            lambda data: data[:40],
            lambda data: b"",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            lambda data: data + b"more",
            lambda data: data.replace(b"bank   1", b"bank   2"),
        ],
    )
    def test_a_spoilt_file_is_deleted_and_its_bank_computed(
        self, parked: House, spoil: object
    ) -> None:
        cold = House(parked.folder / "none").ask()
        for path in parked.files():
            path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
        parked.open()
        generation = parked.ask()
        assert found(generation) == (0, 0)
        assert generation.choice.token_ids == cold.choice.token_ids
        assert parked.files() == []

    def test_a_bank_under_anothers_name_is_not_taken(self, parked: House) -> None:
        one, two, *_ = parked.files()
        one.write_bytes(two.read_bytes())
        parked.open()
        generation = parked.ask()
        assert generation.choice.token_ids == House(parked.folder / "none").ask().choice.token_ids

    def test_a_hole_ends_what_is_loaded(self, parked: House) -> None:
        parked.open()
        for path in parked.files()[2:]:
            path.unlink()
        generation = parked.ask()
        assert found(generation)[1] < 64
        assert generation.choice.token_ids == House(parked.folder / "none").ask().choice.token_ids

    def test_strange_files_are_left_alone(self, parked: House) -> None:
        (parked.folder / "notes.txt").write_text("mine")
        (parked.folder / "zz.bank").write_text("mine")
        parked.open()
        assert found(parked.ask()) == (0, 64)
        assert (parked.folder / "notes.txt").exists()

    def test_a_folder_that_cannot_be_made_leaves_the_engine_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        house = House(tmp_path / "file" / "banks")
        assert found(house.ask(conversation="talk")) == (0, 0)
        assert "not parked" in caplog.text

    def test_a_disk_that_is_full_leaves_the_engine_alone(
        self, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def write(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(BankFiles, "write", write)
        house.ask(conversation="talk")
        assert house.stats.num_parked == 0
        assert "No space left" in caplog.text
        house.engine.forget("", "talk")
        house.restart()
        assert found(house.ask()) == (0, 0)


class TestBounds:
    def test_the_folder_never_takes_more_than_it_may(self, tmp_path: Path) -> None:
        house = House(tmp_path, max_bytes=2000)
        for letter in "abcdefghij":
            house.ask(letter * 70, conversation=letter)
            assert sum(path.stat().st_size for path in house.files()) <= 2000
        assert house.stats.num_deleted > 0
        assert house.stats.num_on_disk == len(house.files())
        house.restart()
        assert found(house.ask("j" * 70)) == (0, 64)
        assert found(house.ask("a" * 70)) == (0, 0)

    def test_what_was_used_stays(self, tmp_path: Path) -> None:
        house = House(tmp_path, max_bytes=2500)
        for letter in "abcd":
            house.ask("x" * 70, conversation="often")
            house.ask(letter * 70, conversation=letter)
        house.restart()
        assert found(house.ask("x" * 70)) == (0, 64)

    def test_files_are_for_this_user_alone(self, house: House) -> None:
        house.ask(conversation="talk")
        assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700
        for path in house.folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_rate_bounds_what_is_written(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        house.engine.close()
        config = ParkingConfig(tmp_path, 10**6, bytes_per_s=68)
        house.config = EngineConfig(pool_bytes=16 * 64, parking=config)
        house.open()
        house.ask(conversation="talk")
        assert len(house.files()) == 1
        for _ in range(8):
            house.engine.clock.advance(0.5)
            house.engine.run_until_idle()
        assert len(house.files()) == 4

    def test_two_engines_share_a_folder(self, house: House) -> None:
        other = House(house.folder)
        house.ask(conversation="talk")
        other.ask(conversation="talk")
        assert len(house.files()) == 4
        other.ask("y" * 70, conversation="else")
        house.restart()
        assert found(house.ask("y" * 70)) == (0, 64)


class TestLeaving:
    def test_at_any_moment_of_a_load(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        for num_steps in range(4):
            generation = house.begin()
            for _ in range(num_steps):
                house.engine.step()
            generation.cancel()
            house.engine.run_until_idle()
            assert generation.choice.reason == "cancelled"
            stats = house.engine.stats()
            assert (stats.num_held_banks, stats.num_running) == (0, 0)

    def test_two_with_one_beginning_read_it_once(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        both = [house.begin(), house.begin()]
        house.engine.run_until_idle()
        assert sorted(map(found, both)) == [(0, 64), (64, 0)]
        assert house.stats.num_loaded == 4

    def test_a_stream_goes_on_beside_a_load(self, house: House) -> None:
        house.ask(conversation="talk")
        house.restart()
        stream = house.begin("s", max_tokens=40)
        house.engine.step()
        late = house.begin()
        house.engine.run_until_idle()
        assert found(late) == (0, 64)
        assert len(stream.choice.token_ids) == 40


def num_common(one: array[int], other: array[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


words = st.text("ab", min_size=1, max_size=60)
asks = st.tuples(
    st.sampled_from(["alice", "bob"]), st.sampled_from(["", "one", "two"]), words, st.integers(0, 6)
)


@given(st.lists(st.one_of(asks, st.sampled_from(["restart", "forget", "wait"])), max_size=14))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_answers_are_those_of_a_cold_engine(
    tmp_path_factory: pytest.TempPathFactory, doings: list[object]
) -> None:
    """Requests, cancels, decay, parks, loads, forgetting and restarts in any order: the fake model
    reads its banks back and fails where one is not what its table says. And nobody finds more of a
    prompt than its own tenant has asked or heard before."""
    house = House(tmp_path_factory.mktemp("banks"), num_banks=12, max_bytes=1500)
    heard: dict[str, list[list[int]]] = {"alice": [], "bob": []}
    for doing in doings:
        if doing == "restart":
            house.restart()
        elif doing == "forget":
            house.engine.forget("alice", "one")
        elif doing == "wait":
            house.engine.clock.advance(1000.0)
            house.engine.run_until_idle()
        else:
            tenant, conversation, prompt, num_steps = doing  # type: ignore[misc]
            generation = house.begin(prompt, tenant=tenant, conversation=conversation or None)
            for _ in range(num_steps):
                house.engine.step()
            if num_steps % 2:
                generation.cancel()
            house.engine.run_until_idle()
            own = heard[tenant]
            tokens = list(generation.prompt_ids)
            most = max((num_common(array("i", tokens), array("i", one)) for one in own), default=0)
            assert generation.choice.usage.num_cached_tokens <= most
            own.append([*tokens, *generation.choice.token_ids])
            if generation.choice.reason == "cancelled":
                continue
            cold = ManualEngine(FakeModel(), EngineConfig(pool_bytes=12 * 64))
            alone = cold.generate_sync(Request(prompt=prompt, max_tokens=4, ignore_eos=True))
            cold.run_until_idle()
            assert generation.choice.token_ids == alone.choice.token_ids
        stats = house.engine.stats()
        assert stats.num_free_banks + stats.num_cached_banks + stats.num_held_banks == 12
    house.engine.close()


def test_half_a_name_at_a_lists_end_harms_nobody(tmp_path: Path) -> None:
    files = BankFiles(tmp_path, 10**6)
    files.open()
    owner, one, two = (bytes([i]) * 32 for i in range(3))
    files.belong(owner, [one])
    path = next(tmp_path.glob("*.list"))
    path.write_bytes(path.read_bytes() + b"half")
    files.belong(owner, [one, two])
    for name in (one, two):
        files.write(name, array("i", [1]).tobytes(), 0)
    assert {one, two} <= set(files.forget(owner))
    assert list(tmp_path.glob("*.bank")) == []
