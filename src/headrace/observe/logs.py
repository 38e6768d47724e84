"""One structured line a request, and how lines look: JSON for programs, colours for people.

In: facts from the server. Out: log records of `headrace.*`, on stderr once `configure` was called.
Thread: the event loop.

Lines tell who asked, what it cost and how it ended; never what was said. Messages of refused
requests may quote the request, so only their codes are logged; those of our own faults are whole.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from headrace.observe.observer import Fact, LimitHit, RequestEnded

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat: TypeAlias = Literal["json", "pretty"]

ROOT = "headrace"
"""Our loggers are this one and those below it."""
MAX_CHARS = 200
"""Of one value in a line: names and ids come from clients."""
QUIET_ENDPOINTS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})
"""Asked every few seconds by machines: logged at debug level."""

_TIMES: dict[LogFormat, str] = {"json": "iso", "pretty": "%Y-%m-%d %H:%M:%S"}
_log = logging.getLogger("headrace.requests")


class _OurHandler(logging.StreamHandler[Any]):
    """Known by its class, so that configuring again replaces it."""


class _Lazy(logging.Formatter):
    """One that is made with the first line: what it needs takes a tenth of a second to import."""

    def __init__(self, make: Callable[[], logging.Formatter]) -> None:
        super().__init__()
        self._make = make

    def format(self, record: logging.LogRecord) -> str:
        return self.made.format(record)

    @cached_property
    def made(self) -> logging.Formatter:
        return self._make()


def configure(log_format: LogFormat, level: str = "info") -> None:
    """Write what `headrace.*` logs to stderr, one line a record; any number of times.

    Nothing else is touched: neither the root logger nor structlog's own configuration. Programs
    that use headrace as a library need not call this; records then go where all theirs go, with
    the fields of a line as attributes. Raises `ValueError` for an unknown level.
    """
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    for handler in [old for old in logger.handlers if isinstance(old, _OurHandler)]:
        logger.removeHandler(handler)
    handler = _OurHandler(sys.stderr)
    handler.setFormatter(_Lazy(lambda: formatter(log_format, has_colours=sys.stderr.isatty())))
    logger.addHandler(handler)
    logger.propagate = False


def warm_up() -> None:
    """Any thread: make what the first line needs, so that no request waits for it."""
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler.formatter, _Lazy):
            _ = handler.formatter.made


def formatter(log_format: LogFormat, *, has_colours: bool = False) -> logging.Formatter:
    """How one record becomes one line."""
    import structlog

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt=_TIMES[log_format], utc=log_format == "json"),
        _tame,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(log_format, has_colours),
        ],
    )


def _renderers(log_format: LogFormat, has_colours: bool) -> list[Processor]:
    import structlog

    if log_format == "json":
        return [
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=has_colours,
            sort_keys=False,
            pad_event_to=0,
            # The rich one shows local variables, and so prompts.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What every line has comes first."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "logger")}
    return {**first, "message": event.pop("event"), **event}


def _tame(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No value writes control characters to a terminal, or fills a page."""
    for key, value in event.items():
        if isinstance(value, str) and key != "event":
            event[key] = tamed(value)
    return event


def tamed(text: str) -> str:
    """`text` in at most `MAX_CHARS` printable characters."""
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RequestLog:
    """Implements `Observer`: a line for each request, and for each limit that was met."""

    def observe(self, fact: Fact) -> None:
        match fact:
            case RequestEnded():
                level = _level(fact)
                if _log.isEnabledFor(level):
                    _log.log(level, "request", extra=request_fields(fact))
            case LimitHit():
                fields = {"tenant": fact.tenant, "model": fact.model, "limit": fact.limit}
                _log.info("limit", extra=fields)


def request_fields(fact: RequestEnded) -> dict[str, Any]:
    """What a line says, in its order; what is not known or not the case is left out."""
    is_our_fault = fact.status >= 500
    fields = {
        "request_id": fact.request_id,
        "client_request_id": fact.client_request_id,
        "tenant": fact.tenant or None,
        "endpoint": fact.endpoint,
        "status": fact.status,
        "model": fact.model,
        "served_by": fact.served_by,
        "stream": fact.is_streamed or None,
        "tokens_in": fact.num_prompt_tokens or None,
        "tokens_cached": fact.num_cached_tokens or None,
        "tokens_out": fact.num_completion_tokens or None,
        "ttft_ms": _ms(fact.ttft_s),
        "tok_s": tokens_per_second(fact),
        "total_ms": _ms(fact.total_s),
        "finish_reason": ",".join(fact.finish_reasons) or None,
        "error": fact.error_code,
        "error_message": fact.error_message if is_our_fault else None,
        # As lists, which are shown whole and escaped.
        "prompts": list(fact.prompts) or None,
        "answers": list(fact.answers) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def tokens_per_second(fact: RequestEnded) -> float | None:
    """How fast the answer was told after its first token; None where nothing followed that."""
    num_followers = fact.num_completion_tokens - max(1, len(fact.finish_reasons))
    if num_followers <= 0 or fact.decode_s <= 0:
        return None
    return round(num_followers / fact.decode_s, 1)


def _level(fact: RequestEnded) -> int:
    if fact.endpoint in QUIET_ENDPOINTS and fact.status in (200, 503):
        return logging.DEBUG
    if fact.status >= 500:
        return logging.WARNING if fact.status == 503 else logging.ERROR
    return logging.INFO


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
