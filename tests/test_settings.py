"""Where data lives; the server's settings, from every place that gives them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from headrace import settings
from headrace.errors import SettingsError
from headrace.settings import SETTINGS, ServerSettings, Setting, document, server_settings


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


# The server's settings


def given(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> ServerSettings:
    return server_settings(flags, environ=environ or {}, config=config)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_given_is_the_defaults(folder: Path) -> None:
    assert given() == ServerSettings()
    assert ServerSettings().port == 8000


def test_earlier_places_hold(folder: Path) -> None:
    toml = folder / "headrace.toml"
    toml.write_text("port = 1\nmax_running = 1\nmodels = ['a', 'b']\nstrict = true\n")
    environ = {"HEADRACE_PORT": "2", "HEADRACE_MAX_RUNNING": "2", "HEADRACE_MODELS": "c"}
    settings = given({"port": "3"}, environ)
    assert (settings.port, settings.max_running) == (3, 2)
    assert settings.models == ("c",)  # as a whole: nothing of the file's list is left
    assert settings.strict


def test_another_file_than_the_one_here(folder: Path) -> None:
    (folder / "headrace.toml").write_text("port = 1\nstrict = true\n")
    other = folder / "other.toml"
    other.write_text("port = 2\n")
    assert given(config=other) == ServerSettings(port=2)
    assert given(environ={"HEADRACE_CONFIG": str(other)}) == ServerSettings(port=2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "there is no setting `prot`; did you mean `port`?"),
        ("[server]\nport = 1", "settings stand outside of tables; take them out of `[server]`"),
        ("port = [1]", "`port` must be a whole number from 0 to 65535, not [1]"),
        ("port = true", "`port` must be a whole number"),
        ("strict = 1", "`strict` must be true or false, not 1"),
        ("models = 'a'\nmodels = 'b'", "overwrite"),
        ("aliases = { a = 1 }", "`aliases` must be pairs of NAME=MODEL"),
        ("port", "Expected '=' after a key"),
        ("cors_origins = ['foo']", "`cors_origins` must be origins like https://"),
        ("cors_origins = ['https://a.com/path']", "`cors_origins` must be origins like https://"),
        ("allowed_hosts = ['http://x/y']", "`allowed_hosts` must be host names"),
        ("fake_tokens_per_s = nan", "`fake_tokens_per_s` must be a number above 0, or inf"),
    ],
)
def test_a_file_that_is_wrong_is_named(folder: Path, text: str, told: str) -> None:
    (folder / "headrace.toml").write_text(text)
    with pytest.raises(SettingsError, match=re.escape(told)) as caught:
        given()
    assert caught.value.message.startswith("headrace.toml: ")


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read"):
        given(config=folder / "none.toml")
    (folder / "headrace.toml").write_bytes(b"fake_text = '\xff'")
    with pytest.raises(SettingsError, match=r"headrace\.toml: .*utf-8"):
        given()


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("HEADRACE_PROT", "1", "there is no setting `HEADRACE_PROT`; did you mean `HEADRACE_PORT`"),
        ("HEADRACE_ZZZ", "1", "see `headrace serve --help`"),
        ("HEADRACE_PORT", "70000", "HEADRACE_PORT: `port` must be a whole number from 0 to 65535"),
        ("HEADRACE_THREADS", "0", "from 1 to 1024, or auto, not '0'"),
        ("HEADRACE_ENGINE", "gpu", "one of native, fake, not 'gpu'"),
        ("HEADRACE_STALL_TIMEOUT_S", "-1", "a number above 0, or never"),
        ("HEADRACE_POOL_BYTES", "much", "a number of bytes, like 4000000, 4MB or 2GiB, or auto"),
        ("HEADRACE_ALIASES", "a", "pairs of NAME=MODEL, or none"),
        ("HEADRACE_MODELS", "a,,b", "names of models"),
    ],
)
def test_a_variable_that_is_wrong_is_named(
    folder: Path, variable: str, text: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)):
        given(environ={variable: text})


def test_a_flag_that_is_wrong_is_named(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--model: `models` must be names") as caught:
        given({"models": ("",)})
    assert caught.value.param == "models"
    with pytest.raises(SettingsError, match="did you mean `host`"):
        given({"hots": "x"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threads", "auto", None),
        ("threads", "3", 3),
        ("total_timeout_s", "never", None),
        ("drain_timeout_s", "0", 0.0),
        ("pool_bytes", "1.5 GiB", 3 * 2**29),
        ("pool_bytes", "2gb", 2_000_000_000),
        ("max_body_bytes", "512k", 512_000),
        ("strict", "TRUE", True),
        ("strict", "no", False),
        ("fake_tokens_per_s", "inf", float("inf")),
        (
            "cors_origins",
            "https://a.example, https://b.example",
            ("https://a.example", "https://b.example"),
        ),
        ("aliases", "fast=a,*=b=c", {"fast": "a", "*": "b=c"}),
        ("aliases", "none", {}),
    ],
)
def test_text_becomes_values(folder: Path, name: str, text: str, value: object) -> None:
    assert getattr(given({name: text}), name) == value
    assert getattr(given(environ={f"HEADRACE_{name.upper()}": text}), name) == value


def test_other_variables_of_that_prefix_are_left_alone(folder: Path) -> None:
    others = {
        "HEADRACE_HOME": "/x",
        "HEADRACE_ISA": "avx2",
        "HEADRACE_PORT": "",  # many tools' way to say: not set
        # What Kubernetes tells of a service named headrace:
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT_HTTP": "80",
        "HEADRACE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert given(environ=others) == ServerSettings()
    assert given(environ={"HEADRACE_PORT": "tcp://10.0.0.1:8000"}) == ServerSettings()


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(SettingsError, match=r"^`port` must be"):
        ServerSettings(port=-1)
    assert ServerSettings(models=["a"]).models == ("a",)  # type: ignore[arg-type]


@given_by(
    st.sampled_from(SETTINGS),
    st.text(max_size=12)
    | st.from_regex(r"-?[0-9]{1,400}(\.[0-9]+)?[kMG]?i?B?", fullmatch=True)
    | st.sampled_from(["true", "auto", "never", "none", "a=b", "a,b", "inf", "nan", "-0", "1e400"]),
)
def test_no_text_breaks_a_setting(setting: Setting, text: str) -> None:
    try:
        value = setting.read(text, setting.variable)
    except SettingsError as error:
        assert setting.variable in error.message
        assert setting.kind.allowed in error.message
    else:
        # What was read is a value of the setting, and stays what it is.
        assert getattr(ServerSettings(**{setting.name: value}), setting.name) == value


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_a_sound_default_and_says_what_for(setting: Setting) -> None:
    assert setting.read(setting.default, "") == setting.default
    assert setting.text.endswith(".")
    assert setting.shown
    assert all(re.fullmatch(r"--[a-z][a-z-]+|-[a-z]", flag) for flag in setting.flags)


def test_no_two_settings_share_a_flag() -> None:
    flags = [flag for setting in SETTINGS for flag in setting.flags]
    assert len(flags) == len(set(flags))


def test_the_page_of_settings_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "settings.md"
    remedy = (
        "write it anew: python -c 'from headrace.settings import document; "
        'open("docs/settings.md", "w").write(document())\''
    )
    assert page.read_text("utf-8") == document(), remedy
