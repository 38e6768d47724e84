"""What a client asks for, whichever endpoint it used: plain, checked values.

Field names are those of the wire. A field that was absent or null has its default; what only the
server knows (models, context, limits) is not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

JSON: TypeAlias = Any
"""What `json.loads` gives."""

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]
ReasoningFormat: TypeAlias = Literal["raw", "parsed", "hidden"]
ServiceTier: TypeAlias = Literal["auto", "on_demand", "flex", "performance"]

DEFAULT_MAX_TOKENS = 1024
"""Where a request names no limit; capped to the room that is left."""
DEFAULT_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, JSON] | None = None
    """JSON schema of its arguments; None: an object with anything in it."""
    strict: bool = False

    def as_wire(self) -> dict[str, JSON]:
        """As chat templates expect it."""
        function: dict[str, JSON] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class NamedTool:
    """`tool_choice`: this tool and no other."""

    name: str


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class JSONObject:
    """`response_format`: any JSON object."""


@dataclass(frozen=True, slots=True)
class JSONSchema:
    """`response_format`: JSON that a schema describes."""

    name: str
    schema: Mapping[str, JSON]
    strict: bool = False


ResponseFormat: TypeAlias = JSONObject | JSONSchema | None
"""None: text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text to answer from."""

    text: str
    id: str | None = None
    title: str = ""


StrategyName: TypeAlias = Literal["full", "sliding_window", "summary", "retrieval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How a conversation is to become a prompt, as far as somebody said so; None: nobody did."""

    strategy: StrategyName | None = None
    keep_turns: int | None = None
    keep_first: int | None = None
    max_tokens: int | None = None
    """Of the prompt."""
    trigger_at_ratio: float | None = None
    k: int | None = None
    mode: Literal["recompute", "shift"] | None = None
    fallback: StrategyName | None = None
    """Instead of a refusal, where `full` does not fit."""
    report: bool | None = None

    def over(self, lower: Context) -> Context:
        """What holds where `lower` holds wherever this says nothing. Another strategy than that of
        `lower` brings none of its numbers with it."""
        if self.strategy not in (None, lower.strategy):
            lower = Context(report=lower.report, fallback=lower.fallback)
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(lower, **{name: value for name, value in said.items() if value is not None})

    def as_wire(self) -> dict[str, JSON]:
        """As a request would say it: what nobody said is left out."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in said.items() if value is not None}


ROOT = "root"
"""As `Place.after`: a conversation's beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a turn of a kept conversation goes on; the question's messages are what is new."""

    conversation_id: str | None = None
    """None: where the response before it stands, or a place of its own that nobody lists."""
    previous_response_id: str | None = None
    creates: bool = False
    """A conversation that is not there yet is made."""
    after: str | None = None
    """The message that the new ones follow, anywhere in the tree, or `ROOT`; None: the last one."""
    queue: bool = False
    """Wait for the turn that is going on, rather than to be refused."""
    stores: bool = True
    """Where no conversation is named: keep the turn under its response's id."""
    num_passing: int = 0
    """So many of the first messages are for this turn alone, like `instructions`."""
    custom: Context | None = None
    """How it becomes a prompt, as far as neither the question nor the conversation says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to a model: exactly one of `messages`, `prompt` and `token_ids`."""

    model: str
    """As asked for: maybe an alias."""
    messages: tuple[Mapping[str, JSON], ...] | None = None
    """Checked, with nulls left out and text parts joined; template-ready."""
    prompt: str | None = None
    """Raw text to go on from, without a template (`/completions`)."""
    token_ids: tuple[int, ...] | None = None
    """Raw tokens to go on from (`/completions`)."""
    continues: bool = False
    """The last message is an answer's beginning: go on exactly where it ends. Set where the last
    message is the assistant's, and where `/chat/completions` got `prompt` (appended as one)."""

    max_tokens: int | None = None
    """As asked for; None: `DEFAULT_MAX_TOKENS`, capped."""
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False
    heal: bool = True
    """Where a text is gone on from, its last tokens are chosen anew."""

    stream: bool | None = None
    """None: the field was absent; see `server/negotiation.py`."""
    include_usage: bool = False
    resumable: bool = False
    """The answer is kept under an id: readers may leave and come back, and only who says so stops
    it."""
    progress: bool = False
    """While nothing is said yet: tell how far the request is, as events of their own."""

    response_format: ResponseFormat = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    """`none` where there are no tools."""
    parallel_tool_calls: bool = True
    disable_tool_validation: bool = False

    reasoning_format: ReasoningFormat | None = None
    """None: what suits the model."""
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    service_tier: ServiceTier = "on_demand"
    user: str | None = None
    template_variables: Mapping[str, JSON] = field(default_factory=dict)
    """Further ones that the chat template reads (`chat_template_kwargs`)."""
    context: Context | None = None
    """How the messages become a prompt; None: as the server does it by default."""
    answer_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By index in `messages`: the token ids that an answer was generated as, where it is kept."""

    place: Place | None = None
    """Where the conversation is kept, if it is."""
    documents: tuple[Document, ...] = ()
    """Each has an id."""

    ignored: tuple[str, ...] = ()
    """Fields that were sent and have no effect, by path: for `x-headrace-ignored`."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every part of one answer carries."""

    id: str
    """`chatcmpl-…`, `cmpl-…` or `resp_…`."""
    request_id: str
    """`req_…`: also the header `x-request-id`."""
    created: int
    """Unix seconds."""
    model: str
    """As asked for."""
    fingerprint: str
    """`fp_…`: of the model and the numerics that answer."""
    service_tier: ServiceTier = "on_demand"
    context: Mapping[str, JSON] | None = None
    """What is told of how the conversation became a prompt, where that was asked for; without
    `cached_tokens`, which are known in the end."""
    tells_times: bool = False
    """The `metadata` of `/responses` says in the end how long it took."""
