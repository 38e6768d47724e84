"""Which limits there are, and what a file of limits may say."""

import json
from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.server.limits import Limit, LimitTable
from headrace.server.limits import table as table_module


def write(folder: Path, text: str, name: str = "limits.toml") -> str:
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def test_none_limits_nothing() -> None:
    assert LimitTable.parse("none").row("anything").limits == ()


@pytest.mark.parametrize(
    ("model", "amounts"),
    [
        ("llama-3.1-8b-instant", (30, 14_400, 6_000, 500_000)),
        ("openai/gpt-oss-safeguard-20b", (30, 1_000, 8_000, 200_000)),
        ("qwen/qwen3-32b", (60, 1_000, 6_000, 500_000)),
        ("a model that the table does not name", (30, 14_400, 6_000, 500_000)),
    ],
)
def test_groq_free(model: str, amounts: tuple[int, ...]) -> None:
    limits = LimitTable.parse("groq-free").row(model).limits
    dimensions = ("RPM", "RPD", "TPM", "TPD")
    assert limits == tuple(Limit(d, n) for d, n in zip(dimensions, amounts, strict=True))


def test_groq_free_without_a_daily_limit_of_tokens() -> None:
    row = LimitTable.parse("groq-free").row("groq/compound")
    assert [limit.dimension for limit in row.limits] == ["RPM", "RPD", "TPM"]


def example() -> str:
    """The file that the module's first lines show."""
    doc = table_module.__doc__ or ""
    return "\n".join(line.strip() for line in doc.splitlines() if line.startswith("    "))


def test_the_documented_file(tmp_path: Path) -> None:
    table = LimitTable.parse(write(tmp_path, example()))
    default = (Limit("RPM", 30), Limit("RPD", 14_400), Limit("TPM", 6_000), Limit("TPD", 500_000))
    assert table.row("any").limits == default
    named = table.row("llama-3.3-70b-versatile").limits
    assert named == (Limit("RPM", 30), Limit("TPM", 12_000))


def test_json_has_the_same_shape(tmp_path: Path) -> None:
    text = json.dumps({"models": {"a": {"tpd": 5}}})
    table = LimitTable.parse(write(tmp_path, text, "limits.json"))
    assert table.row("a").limits == (Limit("TPD", 5),)
    assert table.row("b").limits == ()


def test_what_the_headers_tell() -> None:
    row = LimitTable.parse("groq-free").default
    assert (row.requests, row.tokens) == (Limit("RPD", 14_400), Limit("TPM", 6_000))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[defualt]\nrpm = 1", r"defualt .* is unknown. Did you mean 'default'\?"),
        ("[default]\nrpn = 1", r"default\.rpn .* Did you mean 'rp"),
        ("[models.x]\nzzz = 1", r'models."x".zzz .* is unknown. There are rpm, rpd, tpm, tpd'),
        ("[default]\nrpm = 0", r"default\.rpm .* whole number from 1 .* not 0"),
        ("[default]\nrpm = -3", r"default\.rpm .* not -3"),
        ("[default]\nrpm = true", r"default\.rpm .* not True"),
        ("[default]\ntpm = 1.5", r"default\.tpm .* not 1.5"),
        ('[default]\ntpm = "6K"', r"default\.tpm .* not '6K'"),
        ("default = 3", r"default in .* must be a table"),
        ("models = []", r"models in .* must be a table"),
        ("rpm = ", r"not valid TOML"),
        ("[default]\nrpm = 99999999999999", r"from 1 to 1,000,000,000,000"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        LimitTable.parse(write(tmp_path, text))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "\x00"])
def test_hostile_json_is_a_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"limits\.json"):
        LimitTable.parse(write(tmp_path, text, "limits.json"))


def test_names_and_files_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'groq-fre' is neither 'none', 'groq-free' nor"):
        LimitTable.parse("groq-fre")
    with pytest.raises(SettingsError, match="No such file"):
        LimitTable.parse(str(tmp_path / "none.toml"))
