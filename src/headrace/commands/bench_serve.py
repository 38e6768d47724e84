"""`headrace bench serve`: load on any OpenAI-compatible server, and what its clients see."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import click
from rich.console import Console

from headrace.bench.serve import report
from headrace.bench.serve.asking import GREEDY, OverHTTP, first_model
from headrace.bench.serve.client import Server
from headrace.bench.serve.load import Arrivals, Closed, Load, Open, Outcome, Plan, run
from headrace.bench.serve.report import Targets
from headrace.bench.serve.workloads import WORKLOADS, Length, Workload
from headrace.commands.options import ABOVE_0
from headrace.errors import BenchError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_REQUESTS = 100
SHOW_EVERY_S = 0.5
"""Drawing takes time of the cores that the server may need."""


@click.command(short_help="Load on a server, and what its clients see.")
@click.argument("url", default=DEFAULT_URL)
@click.option("--model", metavar="ID", help="Default: the first one that the server lists.")
@click.option("--api-key", metavar="KEY", envvar="HEADRACE_API_KEY", help="Or HEADRACE_API_KEY.")
@click.option(
    "--workload",
    type=click.Choice(list(WORKLOADS)),
    default="fixed",
    show_default=True,
    help="What is asked; see above.",
)
@click.option("--prompt-words", type=click.IntRange(1), metavar="N", help="Median of a question.")
@click.option("--output-tokens", type=click.IntRange(1), metavar="N", help="Median of an answer.")
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(1),
    metavar="N",
    help="Closed loop: N clients, each asking again when it is answered. Default: 1.",
)
@click.option(
    "--rate",
    type=ABOVE_0,
    metavar="R",
    help="Open loop: R conversations a second begin at random (Poisson), whatever happens.",
)
@click.option("--requests", "-n", type=click.IntRange(1), metavar="N", help="Default: 100.")
@click.option(
    "--duration",
    type=ABOVE_0,
    metavar="S",
    help="Send nothing after S seconds.",
)
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, metavar="N")
@click.option("--timeout", type=ABOVE_0, default=300.0, metavar="S")
@click.option(
    "--ttft-target",
    type=ABOVE_0,
    default=100.0,
    show_default=True,
    metavar="MS",
    help="Goodput: the latest first token of a good answer.",
)
@click.option("--e2e-target", type=ABOVE_0, metavar="MS", help="Its end.")
@click.option("--ignore-eos", is_flag=True, help="Full-length answers, where the server can.")
@click.option("--extra", metavar="JSON", help="Further fields of every request's body.")
@click.option("--seed", type=int, metavar="N", help="The same prompts again. Default: new ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def serve(
    url: str,
    model: str | None,
    api_key: str | None,
    timeout: float,
    ignore_eos: bool,
    extra: str | None,
    ttft_target: float,
    e2e_target: float | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Ask a server as many clients would, by streams, and tell how long they waited.

    URL is a base such as http://127.0.0.1:8000/v1 (default: headrace on this machine). Prompts
    are random words that share no beginning, so no cache of prefixes helps unless the workload
    repeats itself on purpose. Tokens are counted from the server's `usage`.

    \b
    Workloads:
      fixed          128 words, 64 tokens out
      chat           about 48 words, about 96 tokens out, lognormally spread
      long-context   about 2,000 words, 64 tokens out
      shared-prefix  a system message of 512 words for all, questions of 32
      multi-turn     conversations of 5 turns, each with all that was said before

    \b
    Examples:
      headrace bench serve -c 16 -n 400 --workload chat
      headrace bench serve http://127.0.0.1:9000/v1 --rate 4 --duration 60 --json
    """
    plan = _plan(**how)
    fields = {**GREEDY, **({"ignore_eos": True} if ignore_eos else {}), **_extra(extra)}
    server = Server.parse(url, api_key)
    model = model or run(first_model(server))
    with OverHTTP(server, model, fields=fields, timeout_s=timeout) as asker:
        outcome = run(_measured(Load(plan, asker)))
    targets = Targets(ttft_target / 1e3, _seconds(e2e_target))
    found = {"url": server.url, "model": model, **report.summary(outcome, targets)}
    if found["error_rate"] == 1.0:
        raise BenchError(f"no request succeeded: {next(iter(found['errors']))}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{found['model']} at {found['url']} · {found['workload']} · {found['arrivals']} · "
        f"seed {found['seed']}",
        highlight=False,
    )
    console.print(report.latency_table(found))
    for line in report.lines(found):
        console.print(line, highlight=False)


def _plan(
    workload: str,
    prompt_words: int | None,
    output_tokens: int | None,
    concurrency: int | None,
    rate: float | None,
    requests: int | None,
    duration: float | None,
    warmup: int,
    seed: int | None,
) -> Plan:
    if requests is None and duration is None:
        requests = DEFAULT_REQUESTS
    return Plan(
        workload=_sized(WORKLOADS[workload], prompt_words, output_tokens),
        arrivals=_arrivals(concurrency, rate),
        num_requests=requests,
        duration_s=duration,
        num_warmup=warmup,
        seed=random.randrange(10**6) if seed is None else seed,
    )


def _arrivals(concurrency: int | None, rate: float | None) -> Arrivals:
    if rate is None:
        return Closed(concurrency or 1)
    if concurrency is not None:
        raise click.UsageError(
            "--rate sends whatever happens, --concurrency waits for answers: name one of them"
        )
    return Open(rate)


def _sized(workload: Workload, prompt_words: int | None, output_tokens: int | None) -> Workload:
    """`workload` with other medians and the same spread."""
    prompt, output = workload.prompt_words, workload.output_tokens
    return replace(
        workload,
        prompt_words=Length(prompt_words or prompt.median, prompt.sigma),
        output_tokens=Length(output_tokens or output.median, output.sigma),
    )


def _extra(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise click.BadParameter(f"--extra is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise click.BadParameter('--extra must be an object such as {"top_p": 0.9}')
    return fields


async def _measured(load: Load) -> Outcome:
    async with _shown(load):
        return await load.run()


@asynccontextmanager
async def _shown(load: Load) -> AsyncIterator[None]:
    """A line on stderr that moves with the load; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("warming up", refresh_per_second=1 / SHOW_EVERY_S) as status:
        task = asyncio.create_task(_redraw(load, status.update))
        try:
            yield
        finally:
            task.cancel()


async def _redraw(load: Load, show: Callable[[str], None]) -> None:
    num_before = 0
    while True:
        await asyncio.sleep(SHOW_EVERY_S)
        speed = max(0, load.num_tokens - num_before) / SHOW_EVERY_S
        num_before = load.num_tokens
        show(progress_line(load, speed))


def progress_line(load: Load, tokens_per_second: float) -> str:
    """How far a load is."""
    of = "" if load.plan.num_requests is None else f" of {load.plan.num_requests}"
    num_errors = sum(sample.error is not None for sample in load.samples)
    first = sorted(sample.ttft_s for sample in load.samples if sample.error is None)
    ttft = f" · first token p50 {first[len(first) // 2] * 1e3:,.0f} ms" if first else ""
    return (
        f"{len(load.samples)}{of} answered · {load.num_open} open · {num_errors} errors · "
        f"{tokens_per_second:,.0f} tokens a second{ttft}"
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
