"""Which model has which limits: none, Groq's free plan, or what a file says.

A file is TOML, or JSON of the same shape. Each limit is a whole number; one that is not named is
not set.

    [default]                           # models without a row of their own; may be left out
    rpm = 30                            # requests per minute
    rpd = 14400                         # requests per day
    tpm = 6000                          # tokens per minute
    tpd = 500000                        # tokens per day

    [models."llama-3.3-70b-versatile"]  # a model as clients ask for it
    rpm = 30
    tpm = 12000
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headrace.errors import SettingsError
from headrace.server.limits.bucket import DIMENSIONS, Limit

NONE = "none"
GROQ_FREE = "groq-free"

_MAX_AMOUNT = 10**12
_PARTS = ("default", "models")
_FIELDS = {dimension.lower(): dimension for dimension in DIMENSIONS}


@dataclass(frozen=True, slots=True)
class Row:
    """The limits of one model, each at most once."""

    limits: tuple[Limit, ...] = ()

    @property
    def requests(self) -> Limit | None:
        """What the headers tell of requests: RPD, or RPM where that is all there is."""
        return self._find("RPD") or self._find("RPM")

    @property
    def tokens(self) -> Limit | None:
        """What the headers tell of tokens: TPM, or TPD where that is all there is."""
        return self._find("TPM") or self._find("TPD")

    def _find(self, dimension: str) -> Limit | None:
        return next((limit for limit in self.limits if limit.dimension == dimension), None)


@dataclass(frozen=True, slots=True)
class LimitTable:
    """Rows by the model's name as asked for, and the row of all others."""

    rows: Mapping[str, Row] = field(default_factory=dict)
    default: Row = Row()

    @classmethod
    def parse(cls, text: str) -> LimitTable:
        """`none`, `groq-free`, or the path of a TOML or JSON file.

        Raises SettingsError, which names the file, the field and the remedy.
        """
        if text == NONE:
            return cls()
        if text == GROQ_FREE:
            return _groq_free()
        return _table(_read(Path(text).expanduser()), text)

    def row(self, model: str) -> Row:
        return self.rows.get(model, self.default)


# RPM, RPD, TPM, TPD of Groq's free plan in mid-2026; 0 where there is no such limit.
_GROQ_FREE = {
    "allam-2-7b": (30, 7_000, 6_000, 500_000),
    "canopylabs/orpheus-arabic-saudi": (10, 100, 1_200, 3_600),
    "canopylabs/orpheus-v1-english": (10, 100, 1_200, 3_600),
    "groq/compound": (30, 250, 70_000, 0),
    "groq/compound-mini": (30, 250, 70_000, 0),
    "llama-3.1-8b-instant": (30, 14_400, 6_000, 500_000),
    "llama-3.3-70b-versatile": (30, 1_000, 12_000, 100_000),
    "meta-llama/llama-4-scout-17b-16e-instruct": (30, 1_000, 30_000, 500_000),
    "meta-llama/llama-prompt-guard-2-22m": (30, 14_400, 15_000, 500_000),
    "meta-llama/llama-prompt-guard-2-86m": (30, 14_400, 15_000, 500_000),
    "openai/gpt-oss-120b": (30, 1_000, 8_000, 200_000),
    "openai/gpt-oss-20b": (30, 1_000, 8_000, 200_000),
    "openai/gpt-oss-safeguard-20b": (30, 1_000, 8_000, 200_000),
    "qwen/qwen3-32b": (60, 1_000, 6_000, 500_000),
    "qwen/qwen3.6-27b": (30, 1_000, 8_000, 200_000),
    "whisper-large-v3": (20, 2_000, 0, 0),
    "whisper-large-v3-turbo": (20, 2_000, 0, 0),
}
_GROQ_FREE_DEFAULT = "llama-3.1-8b-instant"


def _groq_free() -> LimitTable:
    rows = {
        model: Row(tuple(Limit(d, n) for d, n in zip(DIMENSIONS, amounts, strict=True) if n))
        for model, amounts in _GROQ_FREE.items()
    }
    return LimitTable(rows, rows[_GROQ_FREE_DEFAULT])


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix not in (".toml", ".json"):
        raise SettingsError(
            f"limits: {str(path)!r} is neither {NONE!r}, {GROQ_FREE!r} nor a .toml or .json file."
        )
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        problem = error.strerror or str(error)
        raise SettingsError(f"limits: {path} cannot be read: {problem}.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"limits: {path} is not valid {path.suffix[1:].upper()}: {error}"
        ) from error
    return _mapping(content, str(path), "the file")


def _table(content: Mapping[str, Any], source: str) -> LimitTable:
    for name in content:
        _check_known(name, _PARTS, source, "")
    models = _mapping(content.get("models", {}), source, "models")
    return LimitTable(
        {model: _row(row, source, f'models."{model}"') for model, row in models.items()},
        _row(content.get("default", {}), source, "default"),
    )


def _row(content: Any, source: str, where: str) -> Row:
    fields = _mapping(content, source, where)
    for name, amount in fields.items():
        _check_known(name, tuple(_FIELDS), source, f"{where}.")
        _check_amount(amount, source, f"{where}.{name}")
    return Row(tuple(Limit(d, fields[name]) for name, d in _FIELDS.items() if name in fields))


def _mapping(content: Any, source: str, where: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise SettingsError(
            f"limits: {where} in {source} must be a table of names, not {content!r:.80}."
        )
    return content


def _check_known(name: str, known: tuple[str, ...], source: str, where: str) -> None:
    if name in known:
        return
    near = get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(known)}."
    raise SettingsError(f"limits: {where}{name} in {source} is unknown.{hint}")


def _check_amount(amount: Any, source: str, where: str) -> None:
    is_whole = isinstance(amount, int) and not isinstance(amount, bool)
    if not is_whole or not 1 <= amount <= _MAX_AMOUNT:
        raise SettingsError(
            f"limits: {where} in {source} must be a whole number from 1 to {_MAX_AMOUNT:,}, "
            f"not {amount!r:.80}; leave the line out for no limit."
        )
