"""Prompts in which earlier answers are the very tokens that were generated.

In: messages, and the token ids of answers among them. Out: prompt token ids. Thread: any.
Next: `intake.py`.

An answer does not always tokenize to the tokens that were generated, so a prompt rendered from text
would miss the cache from there on. So the template writes a conversation with places where the
answers stand, and what it writes between them is tokenized by itself:

    <|im_start|>user ... assistant | answer's ids | <|im_end|> ... assistant | answer's ids | ...

What a template does not show as it is (thoughts that it drops, calls that it spells anew) stays
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from headrace.engine.language import Tokenizer
from headrace.model.prompt import RenderedPrompt

Render: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], RenderedPrompt]

_THOUGHTS = re.compile(r"</?think|\[/?THINK|<\|channel", re.IGNORECASE)
"""Templates look for these in what was said, and may show less of it."""


def replayed(
    tokenizer: Tokenizer,
    render: Render,
    messages: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Sequence[int]],
) -> list[int]:
    """The prompt of `messages`, where those that `answers` names by index are these tokens. Raises
    what `render` raises."""
    if not answers:
        return tokenizer.encode_prompt(render(messages))
    rendered = render(with_places(messages, answers))
    cuts = [(rendered.text.find(place(index)), index) for index in sorted(answers)]
    if not _are_shown(rendered.text, cuts):
        return tokenizer.encode_prompt(render(messages))
    ids: list[int] = []
    start = 0
    for position, index in cuts:
        end = position - _spaces_twice(tokenizer, rendered.text, position, answers[index])
        ids = joined(ids, encoded(tokenizer, rendered, start, end), tokenizer)
        ids += answers[index]
        start = position + len(place(index))
    return joined(ids, encoded(tokenizer, rendered, start, len(rendered.text)), tokenizer)


def place(index: int) -> str:
    """Stands for an answer while a template is asked what it writes around it. Nobody types this,
    and no template changes it."""
    return f"\ue000\ue001{index}\ue001\ue000"


def with_places(
    messages: Sequence[Mapping[str, Any]], indices: Mapping[int, Any]
) -> list[Mapping[str, Any]]:
    """`messages`, where the content of some is a place for it."""
    return [
        {**message, "content": place(index)} if index in indices else message
        for index, message in enumerate(messages)
    ]


def encoded(tokenizer: Tokenizer, rendered: RenderedPrompt, start: int, end: int) -> list[int]:
    """The tokens of a part of what was rendered; BOS only where the part is the beginning."""
    spans = tuple(
        (max(begin, start) - start, min(stop, end) - start)
        for begin, stop in rendered.template_spans
        if stop > start and begin < end
    )
    tokens = tokenizer.encode_prompt(RenderedPrompt(rendered.text[start:end], spans))
    if start and tokenizer.adds_bos and tokens[:1] == [tokenizer.bos_id]:
        del tokens[0]
    return tokens


def joined(ids: Sequence[int], tail: list[int], tokenizer: Tokenizer) -> list[int]:
    """An answer that ended by itself has generated the marker that the template writes next."""
    if ids and ids[-1] in tokenizer.eog_ids:
        if tail[:1] == [ids[-1]]:
            return [*ids, *tail[1:]]
        if tail and tail[0] in tokenizer.eog_ids:
            return [*ids[:-1], *tail]
    return [*ids, *tail]


def spelling(tokenizer: Tokenizer, ids: Sequence[int], message: Mapping[str, Any]) -> list[int]:
    """The end of `ids` that says what a message says, without the thoughts before it; nothing where
    they do not, so that the message's text counts."""
    content = message.get("content")
    if any(not 0 <= token < tokenizer.vocab_size for token in ids):
        return []  # another model's
    if message.get("tool_calls") or not isinstance(content, str) or _THOUGHTS.search(content):
        return []
    wanted = content.strip().encode()
    end = len(ids) - (1 if ids and ids[-1] in tokenizer.eog_ids else 0)
    start, num_bytes = _before_space(tokenizer, ids, end), 0
    while start > 0 and num_bytes < len(wanted):
        start -= 1
        num_bytes += len(tokenizer.token_bytes(ids[start]))
    start = _before_space(tokenizer, ids, start)
    said = b"".join(tokenizer.token_bytes(token) for token in ids[start:end])
    return list(ids[start:]) if said.strip() == wanted else []


def spelled(
    tokenizer: Tokenizer,
    answers: Mapping[int, Sequence[int]],
    messages: Sequence[Mapping[str, Any]],
) -> dict[int, Sequence[int]]:
    """Of each answer, by its message's index, the tokens that say what the message says; without
    those that say something else."""
    each = {index: spelling(tokenizer, ids, messages[index]) for index, ids in answers.items()}
    return {index: ids for index, ids in each.items() if ids}


def _spaces_twice(tokenizer: Tokenizer, text: str, position: int, ids: Sequence[int]) -> bool:
    """Some templates write a space before an answer that they did not ask for with one: then the
    model has written it, too."""
    begun = tokenizer.token_bytes(ids[0]) if ids else b""
    return text[position - 1 : position] == " " and begun.startswith(b" ")


def _before_space(tokenizer: Tokenizer, ids: Sequence[int], end: int) -> int:
    while end > 0 and tokenizer.token_bytes(ids[end - 1]).isspace():
        end -= 1
    return end


def _are_shown(text: str, cuts: Sequence[tuple[int, int]]) -> bool:
    """Every place is there, once, in order."""
    positions = [position for position, _ in cuts]
    return (
        min(positions) >= 0
        and positions == sorted(positions)
        and all(text.count(place(index)) == 1 for _, index in cuts)
    )
