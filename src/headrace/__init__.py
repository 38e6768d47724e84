"""headrace: streaming-first LLM inference on your own machine.

    import headrace

    for piece in headrace.generate("Why is the sky blue?"):
        print(piece, end="", flush=True)

What a stream says is in `headrace.events`, what is raised in `headrace.errors`.

Importing it loads nothing and changes nothing; names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.engine.engine import Engine, EngineConfig
    from headrace.engine.request import Request
    from headrace.engine.shared import generate
    from headrace.engine.stream import Generation, Stream
    from headrace.errors import HeadraceError
    from headrace.events import Delta, Failed, Finished, Started, ToolCall

__version__ = "0.1.0"

__all__ = [
    "Delta",
    "Engine",
    "EngineConfig",
    "Failed",
    "Finished",
    "Generation",
    "HeadraceError",
    "Request",
    "Started",
    "Stream",
    "ToolCall",
    "__version__",
    "generate",
]

_HOMES = {
    "Delta": "headrace.events",
    "Engine": "headrace.engine.engine",
    "EngineConfig": "headrace.engine.engine",
    "Failed": "headrace.events",
    "Finished": "headrace.events",
    "Generation": "headrace.engine.stream",
    "HeadraceError": "headrace.errors",
    "Request": "headrace.engine.request",
    "Started": "headrace.events",
    "Stream": "headrace.engine.stream",
    "ToolCall": "headrace.events",
    "generate": "headrace.engine.shared",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
