"""Every error that headrace raises on purpose, in one tree.

    HeadraceError
    ├── InvalidRequest          400  the caller asked for something impossible; names the field
    │   └── ContextLengthExceeded
    ├── ModelNotFound           404  no model of that name is here or in the catalogue
    ├── ModelError              500  a model file or its parts cannot be used
    │   ├── InvalidModelFile         broken, truncated or hostile GGUF; names file and field
    │   ├── UnsupportedModel         a sound file that this version cannot run; lists what it can
    │   └── TemplateError            the chat template is broken, hostile or refuses these messages
    ├── PullError               502  a model could not be fetched
    │   ├── SourceUnavailable        offline, or the source has no such file
    │   ├── HashMismatch             the bytes that came are not the bytes that were promised
    │   └── StorageError             disk full, not writable, or locked by another process
    ├── EngineOverloaded        503  a queue is full; try again later
    ├── EngineClosed            503  the engine is shutting down or has stopped
    ├── GenerationFailed        500  one sequence failed (NaN logits, empty grammar mask)
    └── BenchError              500  a benchmark or a peer it compares with cannot run

Each class carries its HTTP status, wire type and wire code; the server adds no table of its own.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors raised on purpose."""

    status = 500
    wire_type = "internal_server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(HeadraceError):
    status = 400
    wire_type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(HeadraceError):
    status = 404
    wire_type = "invalid_request_error"
    code = "model_not_found"


class ModelError(HeadraceError):
    code = "model_error"


class InvalidModelFile(ModelError):
    code = "invalid_model_file"


class UnsupportedModel(ModelError):
    code = "unsupported_model"


class TemplateError(ModelError):
    code = "template_error"


class PullError(HeadraceError):
    status = 502
    code = "pull_failed"


class SourceUnavailable(PullError):
    code = "source_unavailable"


class HashMismatch(PullError):
    code = "hash_mismatch"


class StorageError(PullError):
    status = 507
    code = "storage_error"


class EngineOverloaded(HeadraceError):
    status = 503
    wire_type = "service_unavailable_error"
    code = "engine_overloaded"


class EngineClosed(HeadraceError):
    status = 503
    wire_type = "service_unavailable_error"
    code = "engine_closed"


class GenerationFailed(HeadraceError):
    code = "generation_failed"


class BenchError(HeadraceError):
    code = "bench_failed"
