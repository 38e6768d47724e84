"""`headrace doctor`: what this machine can do, and what stands in the way."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from headrace import __version__, settings
from headrace.engine.memory import MAX_SHARE, free_memory
from headrace.errors import HeadraceError
from headrace.model import architecture, catalogue, gguf, store
from headrace.model.sources.base import readable

_LIBRARIES = ("tokenizers", "jinja2", "huggingface_hub", "llguidance")
_BUFFER_BYTES = (64_000_000, 512_000_000)
"""Less would be measured in the cache, more would only take longer."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What computes. Empty `instruction_sets` where the native core cannot be used."""

    name: str
    usable_cores: int
    instruction_sets: tuple[str, ...]
    """Those of headrace's kernels that run here, the best first."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model file, as far as its speed goes."""

    name: str
    path: str
    quantization: str
    context_length: int
    bytes_per_token: int
    """Weights that one decode step reads."""
    max_decode_tok_s: float | None
    """What the bandwidth allows one sequence; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `headrace doctor` says."""

    versions: dict[str, str]
    processor: Processor
    free_memory_bytes: int
    bandwidth_bytes_s: float | None
    model: ModelFacts | None
    model_problem: str
    models_dir: str
    model_files: tuple[str, ...]


@click.command(short_help="Look at this machine: how fast could it be?")
@click.option(
    "--model",
    "-m",
    metavar="NAME|FILE.gguf",
    default=catalogue.DEFAULT_MODEL,
    help="The model to judge by. Default: the default model.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def doctor(model: str, as_json: bool) -> None:
    """Look at this machine: processor, memory and its speed, models, versions.

    Every token of one sequence reads all weights once, so the memory's bandwidth, which is measured
    here, bounds how fast a model can answer.

    \b
    Examples:
      headrace doctor
      headrace doctor --model my.gguf --json
    """
    report = examine(model)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        for name, text in lines(report):
            click.echo(f"{name:<13} {text}" if text else "")


def examine(model: str) -> Report:
    """Look at everything. What cannot be looked at is reported, not raised."""
    processor = _processor()
    bandwidth, facts, problem = None, None, ""
    num_bytes = _BUFFER_BYTES[0]
    path: Path | None = None
    try:
        path = store.resolve(model)
        num_bytes = _bytes_per_token(path)
    except HeadraceError as error:
        problem = error.message
    if not processor.problem:
        bandwidth = _bandwidth(min(max(num_bytes, _BUFFER_BYTES[0]), _BUFFER_BYTES[1]))
    if path is not None and not problem:
        facts = _model_facts(path, num_bytes, bandwidth)
    return Report(
        versions=_versions(),
        processor=processor,
        free_memory_bytes=free_memory(),
        bandwidth_bytes_s=bandwidth,
        model=facts,
        model_problem=problem,
        models_dir=str(settings.models_dir()),
        model_files=tuple(installed.path.name for installed in store.installed()),
    )


def lines(report: Report) -> list[tuple[str, str]]:
    """The report for people: (name, text); two empty strings for an empty line."""
    return [
        *_machine_lines(report),
        ("", ""),
        *_model_lines(report),
        ("", ""),
        ("Versions", ", ".join(f"{name} {found}" for name, found in report.versions.items())),
    ]


def _machine_lines(report: Report) -> list[tuple[str, str]]:
    processor = report.processor
    found = [("Processor", f"{processor.name}, {processor.usable_cores} usable cores")]
    if processor.problem:
        found.append(("Kernels", processor.problem))
    else:
        best, *others = processor.instruction_sets
        also = f" (also {', '.join(others)})" if others else ""
        found.append(("Kernels", f"{best}{also}{_remark(best)}"))
    free = report.free_memory_bytes
    pool = readable(free // MAX_SHARE)
    found.append(("Free memory", f"{readable(free)}; the KV pool takes at most {pool} of it"))
    if report.bandwidth_bytes_s is not None:
        found.append(("Bandwidth", f"{report.bandwidth_bytes_s / 1e9:.1f} GB/s, measured reading"))
    return found


def _model_lines(report: Report) -> list[tuple[str, str]]:
    found = []
    if (model := report.model) is not None:
        found.append(
            ("Model", f"{model.name}, {model.quantization}, {model.context_length:,} tokens")
        )
        found.append(("", f"{model.path}"))
        bound = f"{readable(model.bytes_per_token)} of weights for each token"
        if model.max_decode_tok_s is not None:
            bound += f": at most {model.max_decode_tok_s:.0f} tok/s for one sequence"
        found.append(("", bound))
    else:
        found.append(("Model", report.model_problem))
    files = ", ".join(report.model_files) or "none"
    found.append(("Model files", f"{files} in {report.models_dir}"))
    return found


def _remark(best: str) -> str:
    if best != "portable":
        return ""
    return "; no kernels are tuned for this processor yet, so it will be slow"


def _processor() -> Processor:
    try:
        from headrace import _native

        facts = _native.cpu()
        sets = tuple(facts["instruction_sets"])
        return Processor(str(facts["name"]), int(facts["usable_cores"]), sets)
    except ImportError as error:
        problem = f"the native core cannot be loaded ({error}); install headrace again"
        return Processor(
            platform.processor() or platform.machine(), os.cpu_count() or 1, (), problem
        )


def _bandwidth(num_bytes: int) -> float:
    """Bytes a second that all cores read together."""
    from headrace import _native

    return float(_native.measure_bandwidth(num_bytes, 0))


def _bytes_per_token(path: Path) -> int:
    """All tensors once; of a token embedding that is not the output head too, next to nothing."""
    file = gguf.read(path)
    is_tied = architecture.describe(file).tied_head
    return sum(
        tensor.num_bytes
        for name, tensor in file.tensors.items()
        if is_tied or name != "token_embd.weight"
    )


def _model_facts(path: Path, num_bytes: int, bandwidth: float | None) -> ModelFacts:
    facts = store.facts_of(path)
    return ModelFacts(
        name=path.stem,
        path=str(path),
        quantization=facts.quantization,
        context_length=facts.context_length,
        bytes_per_token=num_bytes,
        max_decode_tok_s=bandwidth / num_bytes if bandwidth is not None else None,
    )


def _versions() -> dict[str, str]:
    found = {"headrace": __version__, "python": platform.python_version()}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if sys.implementation.name != "cpython":
        found["python"] += f" ({sys.implementation.name})"
    return found
