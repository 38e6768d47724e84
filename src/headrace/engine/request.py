"""What was asked, checked.

In: a caller's wishes. Out: a frozen `Request`. Thread: the caller's. Next: `admission.py`.

Field names are those of the wire, so that an error that names a field names it for everybody.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeAlias

from headrace.engine.grammar import Grammar
from headrace.errors import InvalidRequest
from headrace.model.interface import SamplingSettings

Message: TypeAlias = Mapping[str, Any]
"""One chat message as on the wire: `{"role": "user", "content": "…"}`."""

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_CONVERSATION_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation: exactly one of `messages`, `prompt` and `token_ids`, and how to answer it.

    Raises `InvalidRequest`, naming the field, where a value is of the wrong type or out of range.
    What depends on the model (context length, token ids) is checked by the engine.
    """

    messages: Sequence[Message] | None = None
    """A conversation, rendered with the model's chat template."""
    answer_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By index in `messages`: the tokens that an answer was generated as. They take the place of
    its text where they spell it, so that its banks are found again."""
    tools: Sequence[Message] = ()
    """Functions that the chat template tells the model of, as on the wire."""
    continue_final_message: bool = False
    """The last message is an answer's beginning: go on exactly where it ends."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further ones that the chat template reads, for example `enable_thinking`."""
    prompt: str | None = None
    """Text to go on from as it is, without a template."""
    token_ids: Sequence[int] | None = None
    """Tokens to go on from as they are: earlier turns replayed exactly."""
    heal: bool = True
    """Where a text is gone on from, choose its last tokens anew, so that it may end anywhere, also
    inside a word. False: its tokens stay as they are."""
    begun: bytes = b""
    """With what the answer must begin, and what is not said again: whoever asks has it. Set by the
    engine where it heals."""

    max_tokens: int | None = None
    """The most tokens to generate, per choice. None, or more than fits: to the context's end."""
    stop: str | Sequence[str] = ()
    """Strings that end the answer; they are never part of it."""
    n: int = 1
    """How many answers to give."""
    prefill_only: bool = False
    """Give no answer: compute the prompt's banks, so that the next request which begins with it
    need not. The stream says `Started`, then `Finished`."""
    ignore_eos: bool = False
    """Go on after end-of-generation tokens: for benchmarks."""

    temperature: float = 0.0
    """0 takes the likeliest token always."""
    top_p: float = 1.0
    """0 to 1: keep the likeliest tokens whose probabilities together reach this; 1 keeps all."""
    top_k: int = 0
    """Keep so many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """0 to 1: drop tokens less likely than this times the likeliest one; 0 drops none."""
    repetition_penalty: float = 1.0
    """Above 0: makes tokens of prompt and answer less likely where above 1; 1 changes nothing."""
    frequency_penalty: float = 0.0
    """-2 to 2: taken from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """-2 to 2: taken once from the logit of each token that the answer has."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → amount added to its logit; minus infinity forbids the token."""
    seed: int | None = None
    """None: the engine chooses one and says it in `Started`."""
    logprobs: bool = False
    """Tell each token's natural-log probability, before penalties, bias and temperature."""
    top_logprobs: int = 0
    """0 to 20: tell so many of the likeliest tokens, too. Needs `logprobs`."""

    grammar: Grammar | None = None
    """Says which tokens may come next; see `headrace.engine.grammar`. None: any."""
    visible_tokens: Mapping[int, bytes] = field(default_factory=dict)
    """What control tokens spell in this answer, where somebody reads markers in its text."""
    tenant: str = ""
    """Whose cached banks may be used, and in whose fair share this counts."""
    conversation: str | None = None
    """The tenant's conversation of which this is a turn: its banks are kept for the next one, in
    place of what the turn before kept. One that breaks off leaves those as they were."""
    shift: bool = False
    """Where turns were dropped from the middle of the conversation, use the banks of those that are
    left all the same: their keys are turned to the new positions instead of computed again. The
    answer is approximate then (`Usage.num_shifted_tokens`), and so are later ones that go on from
    it. Where nothing was dropped, or no banks are left, all is computed as ever, and exact."""

    def __post_init__(self) -> None:
        _check_prompt(self)
        _check_numbers(self)
        _check_stops(self.stop)
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        _check_variables(self.template_variables)
        if self.prefill_only and self.n != 1:
            raise _wrong("n", self.n, "1 where `prefill_only` asks for no answer")
        if not isinstance(self.begun, bytes):
            raise _wrong("begun", self.begun, "bytes")
        if not isinstance(self.tenant, str):
            raise _wrong("tenant", self.tenant, "a string")
        _check_conversation(self.conversation)
        if self.shift and self.conversation is None:
            raise InvalidRequest("`shift` needs a `conversation`", param="shift")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, choice: int, seed: int) -> SamplingSettings:
        """The settings of one choice, with the seed that holds for all of them."""
        return SamplingSettings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=seed & 0xFFFF_FFFF_FFFF_FFFF,
            choice=choice,
            num_logprobs=self.top_logprobs,
            want_logprob=self.logprobs,
            logit_bias=tuple(self.logit_bias.items()),
        )


def _check_prompt(request: Request) -> None:
    given = [
        name for name in ("messages", "prompt", "token_ids") if getattr(request, name) is not None
    ]
    if len(given) != 1:
        raise InvalidRequest(
            "a request needs exactly one of `messages`, `prompt` and `token_ids`; "
            + (f"it has {' and '.join(f'`{name}`' for name in given)}" if given else "it has none"),
            param=given[1] if given else "messages",
        )
    if request.messages is not None:
        _check_messages(request.messages)
        _check_answers(request.messages, request.answer_ids)
    if request.prompt is not None and not isinstance(request.prompt, str):
        raise _wrong("prompt", request.prompt, "a string")
    if request.token_ids is not None:
        _check_token_ids(request.token_ids)


def _check_token_ids(token_ids: Sequence[int]) -> None:
    """A sequence of numbers, none of which is out of any model's range."""
    # Not `Sequence`: array.array and NumPy arrays hold token ids too, and are none.
    if isinstance(token_ids, (str, bytes, bytearray, Mapping)) or not hasattr(
        token_ids, "__getitem__"
    ):
        raise _wrong("token_ids", token_ids, "a list of token ids")
    if len(token_ids) == 0:
        raise InvalidRequest("`token_ids` is empty; it needs at least one token", param="token_ids")
    for position, token in enumerate(token_ids):
        if not _is_token_id(token):
            raise _wrong(
                f"token_ids[{position}]", token, "a token id, a whole number of at least 0"
            )


def _is_token_id(token: object) -> bool:
    """Whole numbers of any type, as NumPy's; but true and false are none."""
    if isinstance(token, bool) or not isinstance(token, SupportsIndex):
        return False
    try:
        return 0 <= operator.index(token) < 2**31
    except TypeError:
        return False


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise _wrong("messages", messages, "a list of messages")
    if not messages:
        raise InvalidRequest("`messages` is empty; it needs at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise _wrong(f"messages[{index}]", message, 'an object like {"role": …, "content": …}')
        if not isinstance(message.get("role"), str):
            raise _wrong(f"messages[{index}].role", message.get("role"), "a string")


def _check_answers(messages: Sequence[Message], answer_ids: Mapping[int, Sequence[int]]) -> None:
    for index in answer_ids:
        if not 0 <= index < len(messages) or messages[index]["role"] != "assistant":
            raise _wrong("answer_ids", index, "a map from indices of the assistant's messages")


_HUGE = 1e30
"""Leaves out infinity and integers that no float can hold."""
_FLOATS = {
    # field: (least, most, what it must be)
    "temperature": (0.0, _HUGE, "a number of at least 0"),
    "top_p": (0.0, 1.0, "a number from 0 to 1"),
    "min_p": (0.0, 1.0, "a number from 0 to 1"),
    "repetition_penalty": (1e-6, _HUGE, "a number above 0; 1 changes nothing"),
    "frequency_penalty": (-2.0, 2.0, "a number from -2 to 2"),
    "presence_penalty": (-2.0, 2.0, "a number from -2 to 2"),
}
_INTEGERS = {
    "max_tokens": (1, 2**31 - 1, "a whole number of at least 1"),
    "n": (1, MAX_CHOICES, f"a whole number from 1 to {MAX_CHOICES}"),
    "top_k": (0, 2**31 - 1, "a whole number of at least 0; 0 keeps all tokens"),
    "seed": (-(2**63), 2**64 - 1, "a whole number of at most 64 bits"),
    "top_logprobs": (0, MAX_TOP_LOGPROBS, f"a whole number from 0 to {MAX_TOP_LOGPROBS}"),
}
_OPTIONAL = ("max_tokens", "seed")
_BOOLEANS = ("ignore_eos", "logprobs", "continue_final_message", "heal", "prefill_only", "shift")


_TEMPLATE_OWN = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def _check_variables(variables: Mapping[str, Any]) -> None:
    if not isinstance(variables, Mapping):
        raise _wrong("template_variables", variables, "a map from name to value")
    for name in variables:
        if not isinstance(name, str) or name in _TEMPLATE_OWN:
            raise _wrong("template_variables", name, "names that the template does not set")


def _check_numbers(request: Request) -> None:
    for name, (least, most, wanted) in _FLOATS.items():
        value = getattr(request, name)
        if not _is_number(value) or not least <= value <= most:
            raise _wrong(name, value, wanted)
    for name, (lowest, highest, wanted) in _INTEGERS.items():
        value = getattr(request, name)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise _wrong(name, value, wanted)
    for name in _BOOLEANS:
        if not isinstance(getattr(request, name), bool):
            raise _wrong(name, getattr(request, name), "true or false")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_stops(stop: str | Sequence[str]) -> None:
    wanted = "a string, or a list of strings, none of them empty"
    if not isinstance(stop, Sequence):
        raise _wrong("stop", stop, wanted)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"`stop` has {len(stops)} strings; at most {MAX_STOPS} are allowed", param="stop"
        )
    for text in stops:
        if not isinstance(text, str) or not text:
            raise _wrong("stop", text, wanted)


def _check_conversation(conversation: object) -> None:
    if conversation is None:
        return
    if not isinstance(conversation, str) or not 0 < len(conversation) <= MAX_CONVERSATION_CHARS:
        wanted = f"a name of 1 to {MAX_CONVERSATION_CHARS} characters"
        raise _wrong("conversation", conversation, wanted)


def _checked_bias(logit_bias: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise _wrong("logit_bias", logit_bias, "a map from token id to a number")
    for token, bias in logit_bias.items():
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise _wrong("logit_bias", token, "a map whose keys are token ids")
        # Minus infinity forbids a token; plus infinity would be no probability at all.
        if not _is_number(bias) or not -math.inf <= bias <= _HUGE:
            raise _wrong(f"logit_bias[{token}]", bias, "a number")
    return dict(logit_bias)


def _wrong(name: str, value: object, wanted: str) -> InvalidRequest:
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…"
    return InvalidRequest(f"`{name}` must be {wanted}, not {shown}", param=name)
