"""Leave to read one stream: as whom, for how long, and for which."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import AuthenticationFailed
from headrace.server.tokens import KEY_FILE, LIFETIME_S, StreamTokens, kept_key

NOW = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@given(stream=st.text(), tenant=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_token_names_its_tenant(stream: str, tenant: str) -> None:
    tokens = StreamTokens()
    token = tokens.make(stream, tenant)
    assert tokens.tenant(stream, token) == tenant
    with pytest.raises(AuthenticationFailed):
        tokens.tenant(stream + "x", token)
    with pytest.raises(AuthenticationFailed):
        StreamTokens().tenant(stream, token)


def test_a_token_ends() -> None:
    clock = Clock()
    tokens = StreamTokens(clock=clock)
    token = tokens.make("stream_1", "key_1")
    assert tokens.expiry() == NOW + LIFETIME_S
    clock.now += LIFETIME_S
    assert tokens.tenant("stream_1", token) == "key_1"
    clock.now += 1
    with pytest.raises(AuthenticationFailed):
        tokens.tenant("stream_1", token)


@given(data=st.data())
def test_a_changed_token_is_worth_nothing(data: st.DataObject) -> None:
    tokens = StreamTokens()
    token = tokens.make("stream_1", "key_1")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda character: character != token[at]))
    with pytest.raises(AuthenticationFailed):
        tokens.tenant("stream_1", token[:at] + other + token[at + 1 :])


@given(token=st.text(st.sampled_from("0123456789.abc=é\n ")) | st.text())
def test_whatever_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(AuthenticationFailed):
        StreamTokens().tenant("stream_1", token)


def test_what_was_signed_for_one_pair_does_not_fit_another() -> None:
    tokens = StreamTokens()
    expires_at, named, signature = tokens.make("b", "a").split(".")
    with pytest.raises(AuthenticationFailed):
        tokens.tenant(f"{named}.b", f"{expires_at}.{signature}")


def test_a_kept_key_outlives_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    key = kept_key(folder)
    assert kept_key(folder) == key and len(key) == 32
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    token = StreamTokens(key).make("stream_1", "key_1")
    assert StreamTokens(kept_key(folder)).tenant("stream_1", token) == "key_1"


def test_a_key_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"short")
    key = kept_key(tmp_path)
    assert len(key) == 32 and kept_key(tmp_path) == key
