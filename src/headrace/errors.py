"""Every error that headrace raises on purpose, in one tree.

    HeadraceError
    ├── InvalidRequest          400  the caller asked for something impossible; names the field
    │   ├── ContextLengthExceeded    the prompt, or prompt and answer, do not fit
    │   ├── ToolUseFailed            the model called no tool, an unknown one, or one wrongly
    │   └── JSONValidateFailed       the model's answer is not the JSON that was asked for
    ├── AuthenticationFailed    401  no key, or one that is not known
    ├── Forbidden               403  a foreign web page, or a host that this server is not
    ├── NotFound                404
    │   ├── ModelNotFound            no model of that name is here or in the catalogue
    │   ├── UnknownURL               no such path, or another method
    │   ├── EndpointNotOffered       Groq has it, headrace does not
    │   ├── StreamNotFound           no stream of that id, or somebody else's
    │   ├── DocumentNotFound         no document of that id in this conversation
    │   └── ConversationNotFound     no conversation, message or response of that id, or another's
    ├── ConversationBusy        409  another turn of the conversation is going on
    ├── DocumentExists          409  the conversation has a document of that id
    ├── ConversationTooLarge    413  it holds as much as one conversation may
    ├── StreamGone              410  there was one, and it is not kept any more
    │   └── StreamAbandoned          nobody read it for too long, so it was stopped
    ├── StreamRunning           409  a stream is to be gone on with that has not ended
    ├── StreamTooLarge          507  it outgrew the room that the server has for streams
    ├── IdempotencyConflict     422  the same Idempotency-Key with another body
    ├── BodyTooLarge            413  the body is longer than the server reads
    ├── RateLimited             429  a limit of this key is used up; says when to come again
    │   └── RequestTooLarge     413  more tokens than the limit could ever allow
    ├── FlexCapacityExceeded    498  no room now for a request that does not want to wait
    ├── ModelError              500  a model file or its parts cannot be used
    │   ├── InvalidModelFile         broken, truncated or hostile GGUF; names file and field
    │   ├── UnsupportedModel         a sound file that this version cannot run; lists what it can
    │   └── TemplateError            the chat template is broken, hostile or refuses these messages
    ├── PullError               502  a model could not be fetched
    │   ├── SourceUnavailable        offline, or the source has no such file
    │   ├── HashMismatch             the bytes that came are not the bytes that were promised
    │   └── StorageError        507  disk full, not writable, or locked by another process
    ├── Unavailable             503  not now; says when to come again
    │   ├── EngineOverloaded         a queue is full
    │   ├── EngineClosed             the engine is shutting down or has stopped
    │   ├── DatabaseFailed           the database of the conversations is not to be had now
    │   ├── ModelLoading             the server is up, its model not yet
    │   └── ServerDraining           the server finishes what it has and takes no more
    ├── GenerationTimeout       504  no token, or no end, within the time allowed
    ├── GenerationFailed        500  one sequence failed (NaN logits, empty grammar mask)
    ├── JournalFailed           507  a stream cannot be kept on disk: full, locked, not writable
    ├── SettingsError           500  a setting is unknown, contradictory or out of range
    ├── CannotListen            500  the server's address or port is taken, or not to be had
    └── BenchError              500  a benchmark or a peer it compares with cannot run

Each class carries its HTTP status, wire type and wire code; the server adds no table of its own.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors raised on purpose."""

    status = 500
    wire_type = "internal_server_error"
    code: str | None = None
    retry_after_s: float | None = None
    """When to come again, where that is known."""
    failed_generation: str | None = None
    """What the model said, where that is what is wrong."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(HeadraceError):
    status = 400
    wire_type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class _FailedAnswer(InvalidRequest):
    def __init__(self, message: str, failed_generation: str) -> None:
        super().__init__(message)
        self.failed_generation = failed_generation


class ToolUseFailed(_FailedAnswer):
    code = "tool_use_failed"


class JSONValidateFailed(_FailedAnswer):
    code = "json_validate_failed"


class AuthenticationFailed(HeadraceError):
    status = 401
    wire_type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(HeadraceError):
    status = 403
    wire_type = "invalid_request_error"
    code = "forbidden"


class NotFound(HeadraceError):
    status = 404
    wire_type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class UnknownURL(NotFound):
    code = "unknown_url"


class EndpointNotOffered(NotFound):
    code = "endpoint_not_offered"


class StreamNotFound(NotFound):
    code = "stream_not_found"


class ConversationNotFound(NotFound):
    code = "conversation_not_found"


class DocumentNotFound(NotFound):
    code = "document_not_found"


class DocumentExists(HeadraceError):
    status = 409
    wire_type = "invalid_request_error"
    code = "document_exists"


class ConversationBusy(HeadraceError):
    status = 409
    wire_type = "invalid_request_error"
    code = "conversation_busy"


class ConversationTooLarge(HeadraceError):
    status = 413
    wire_type = "invalid_request_error"
    code = "conversation_too_large"


class StreamGone(HeadraceError):
    status = 410
    wire_type = "invalid_request_error"
    code = "stream_gone"


class StreamAbandoned(StreamGone):
    code = "stream_abandoned"


class StreamRunning(HeadraceError):
    status = 409
    wire_type = "invalid_request_error"
    code = "stream_running"


class StreamTooLarge(HeadraceError):
    status = 507
    code = "stream_too_large"


class IdempotencyConflict(HeadraceError):
    status = 422
    wire_type = "invalid_request_error"
    code = "idempotency_conflict"


class BodyTooLarge(HeadraceError):
    status = 413
    wire_type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(HeadraceError):
    """`wire_type` is `requests` or `tokens`, whichever limit was met; `limit` names it: `TPM`."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, wire_type: str, retry_after_s: float | None, limit: str | None = None
    ) -> None:
        super().__init__(message)
        self.wire_type = wire_type
        self.retry_after_s = retry_after_s
        self.limit = limit


class RequestTooLarge(RateLimited):
    status = 413


class FlexCapacityExceeded(HeadraceError):
    status = 498
    wire_type = "invalid_request_error"
    code = "capacity_exceeded"


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


class Unavailable(HeadraceError):
    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineOverloaded(Unavailable):
    code = "engine_overloaded"


class EngineClosed(Unavailable):
    code = "engine_closed"


class DatabaseFailed(Unavailable):
    code = "database_failed"


class ModelLoading(Unavailable):
    code = "model_loading"


class ServerDraining(Unavailable):
    code = "server_draining"


class GenerationTimeout(HeadraceError):
    status = 504
    code = "generation_timeout"


class GenerationFailed(HeadraceError):
    code = "generation_failed"


class JournalFailed(HeadraceError):
    status = 507
    code = "journal_failed"


class SettingsError(HeadraceError):
    code = "invalid_settings"


class CannotListen(HeadraceError):
    code = "cannot_listen"


class BenchError(HeadraceError):
    code = "bench_failed"
