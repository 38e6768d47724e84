"""What templates can do to values, each operation paid for and traced.

Methods of text, operators, and filters: those that chat templates use, and no others. Operators
are filters too, with names that no template can write (`!add`); `rewriting.py` puts them in.
"""

from __future__ import annotations

import html
import json
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from jinja2 import pass_context
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context
from jinja2.utils import Namespace

from headrace.model.template.meter import (
    CONTAINERS,
    MAX_INT_BITS,
    BudgetExceededError,
    Meter,
    MeteredContext,
)
from headrace.model.template.origins import Traced, joined, written_by_message

Operation = Callable[..., Any]


class InertNamespace(Namespace):
    """Jinja's `namespace`, which prints as nothing that could grow and keeps no private names."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


@pass_context
def make_namespace(context: MeteredContext, *args: Any, **kwargs: Any) -> InertNamespace:
    attributes = make_dict(context, *args, **kwargs)
    for name in attributes:
        _check_name(name)
    return InertNamespace(attributes)


@pass_context
def make_dict(context: MeteredContext, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    for argument in args:
        context.meter.read_deep(argument)
    return dict(*args, **kwargs)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise TypeError(f"a namespace cannot have an attribute {name!r:.80}")


# Methods

METHODS: tuple[tuple[tuple[type, ...], frozenset[str]], ...] = (
    (
        (str,),
        frozenset(
            """
            capitalize count endswith find format index isalnum isalpha isdecimal isdigit islower
            isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix
            replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip title
            upper
            """.split()  # noqa: SIM905 - reads better than 34 quoted names
        ),
    ),
    ((list, tuple), frozenset({"count", "index"})),
    ((dict,), frozenset({"get", "items", "keys", "values"})),
)
"""What may be called on plain values."""


def call_text_method(
    meter: Meter, owner: str, method: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`owner.method(*args, **kwargs)`, for the methods in `METHODS`."""
    name = method.__name__
    if name == "join":
        return _join(meter, owner, *args)
    meter.read_items(owner)
    for argument in args:
        meter.read_items(argument)
    if name == "format":
        _check_format(meter, owner, (*args, *kwargs.values()))
    elif name == "replace":
        _check_replacement(meter, owner, *args)
    return meter.made(_owned(method(*args, **kwargs), (owner, *args, *kwargs.values())))


def _owned(result: Any, sources: Iterable[Any]) -> Any:
    """Text made from messages is the messages', where its characters were not traced."""
    if type(result) is str and any(isinstance(part, (Traced, *CONTAINERS)) for part in sources):
        return written_by_message(result)
    return result


def _join(meter: Meter, separator: str, parts: Any) -> str:
    parts = [meter.text(part) for part in parts]
    meter.spend(len(parts))
    meter.allow(sum(map(len, parts)) + len(separator) * len(parts))
    return cast(str, meter.made(joined(separator, parts)))


def _check_replacement(meter: Meter, text: str, old: str, new: str, count: int | None = -1) -> None:
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(times, count)
    meter.allow(len(text) + times * len(new))


def _check_format(meter: Meter, text: str, values: Iterable[Any]) -> None:
    # A width makes a text as long as it likes; so does one field inside another.
    if re.search(r"\d{4}|\*|\{[^}]*\{", text):
        raise BudgetExceededError("it formats to a width of thousands of characters")
    for value in values:
        meter.read_deep(value)


def format_percent(meter: Meter, text: str, values: Any) -> Any:
    """`text % values`."""
    _check_format(meter, text, (values,))
    sources = values if isinstance(values, tuple) else (values,)
    return meter.made(_owned(text % values, (text, *sources)))


# Operators


@pass_context
def _add(context: MeteredContext, total: Any, *values: Any) -> Any:
    for value in values:
        if isinstance(total, str) and isinstance(value, str):
            context.meter.allow(len(total) + len(value))
        total = context.meter.made(total + value)
    return total


@pass_context
def _tilde(context: MeteredContext, *values: Any) -> str:
    return _join(context.meter, "", values)


def check_product(meter: Meter, left: Any, right: Any) -> None:
    """Pay for `left * right` where it repeats something."""
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            size = len(value) if isinstance(value, str) else meter.size(value)
            meter.allow(size * max(times, 0))
            meter.spend((size * max(times, 0)) >> 6)


def check_power(base: Any, exponent: Any) -> None:
    """Refuse `base ** exponent` where the result is huge."""
    if isinstance(base, int) and isinstance(exponent, int):
        num_bits = base.bit_length() * abs(exponent)
        if num_bits > MAX_INT_BITS:
            raise BudgetExceededError("it computes with numbers of hundreds of digits")


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}
_TEST_NAMES = {
    "==": "eq", "eq": "eq", "equalto": "eq", "!=": "ne", "ne": "ne", "in": "in",
    ">": "gt", "gt": "gt", "greaterthan": "gt", ">=": "gteq", "ge": "gteq",
    "<": "lt", "lt": "lt", "lessthan": "lt", "<=": "lteq", "le": "lteq",
}  # fmt: skip


@pass_context
def _compare(context: MeteredContext, left: Any, name: str, right: Any) -> bool:
    meter = context.meter
    if name in ("in", "notin"):
        meter.read_items(right)
        if isinstance(left, CONTAINERS):
            meter.read_deep(left)
            meter.read_deep(right)
    elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        meter.spend(min(meter.size(left), meter.size(right)))
    elif isinstance(left, str) and isinstance(right, str):
        meter.spend(min(len(left), len(right)) >> 6)
    return _COMPARISONS[name](left, right)


def _comparing_test(name: str) -> Operation:
    @pass_context
    def test(context: MeteredContext, left: Any, right: Any) -> bool:
        return _compare(context, left, name, right)

    return test


COMPARING_TESTS = {alias: _comparing_test(name) for alias, name in _TEST_NAMES.items()}
"""`x is equalto y` and its like; Jinja's other tests cost nothing that depends on values."""


@pass_context
def _operand(context: MeteredContext, value: Any) -> Any:
    context.meter.read_deep(value)
    return value


@pass_context
def _made(context: MeteredContext, value: Any) -> Any:
    return context.meter.made(value)


@pass_context
def _made_dict(context: MeteredContext, pairs: list[tuple[Any, Any]]) -> Any:
    for key, _ in pairs:
        context.meter.read_deep(key)
    return context.meter.made(dict(pairs))


@pass_context
def _step(context: MeteredContext, value: bool, steps: int) -> bool:
    context.meter.spend(steps)
    return value


@pass_context
def printed(context: MeteredContext, value: Any) -> str:
    """What `{{ value }}` prints."""
    return context.meter.text(value)


# Filters


def _paid(name: str, pay: Callable[[Meter, Any], None]) -> Operation:
    """Jinja's filter `name`, paid for."""
    function = JINJA_FILTERS[name]
    passed = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def filtered(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        context.meter.spend(1)
        pay(context.meter, value)
        extra = () if passed is None else (_passed(context, passed.name),)
        return context.meter.made(function(*extra, value, *args, **kwargs))

    return filtered


def _passed(context: Context, name: str) -> Any:
    return {
        "context": context,
        "eval_context": context.eval_ctx,
        "environment": context.environment,
    }[name]


def _on_text(name: str) -> Operation:
    """Jinja's filter `name`, which is one method of `Traced`, paid for."""
    filtered = _paid(name, _pay_nothing)

    @pass_context
    def on_text(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        return filtered(context, context.meter.text(value), *args, **kwargs)

    return on_text


def _on_bare_text(name: str) -> Operation:
    """Jinja's filter `name`, which takes text apart in ways that are not followed: what it makes of
    a message's text is a message's."""
    filtered = _paid(name, _pay_nothing)

    @pass_context
    def on_text(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = context.meter.text(value)
        bare = [_bare(argument) for argument in (text, *args)]
        result = filtered(context, *bare, **{key: _bare(kwargs[key]) for key in kwargs})
        return _owned(result, (text, *args, *kwargs.values()))

    return on_text


def _bare(value: Any) -> Any:
    return str.__str__(value) if isinstance(value, str) else value


def _pay_nothing(meter: Meter, value: Any) -> None:
    """For filters that look at the first or last part only."""


def _pay_calls(meter: Meter, value: Any) -> None:
    """For filters that call something for each item."""
    for _ in range(4):
        meter.read_items(value)


def _pay_sorting(meter: Meter, value: Any) -> None:
    meter.read_deep(value)
    if hasattr(value, "__len__"):
        meter.spend(meter.size(value) * len(value).bit_length())


def _sorting(name: str) -> Operation:
    filtered = _paid(name, _pay_sorting)

    @pass_context
    def on_list(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(value, "__len__"):
            value = context.meter.made(list(value))
        return filtered(context, value, *args, **kwargs)

    return on_list


@pass_context
def _replace(
    context: MeteredContext, value: Any, old: Any, new: Any, count: int | None = None
) -> str:
    meter = context.meter
    text, old, new = meter.text(value), meter.text(old), meter.text(new)
    _check_replacement(meter, text, old, new, count)
    replaced = text.replace(old, new, -1 if count is None else count)
    return cast(str, meter.made(_owned(replaced, (text, new))))


@pass_context
def _join_filter(context: MeteredContext, value: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = context.environment.call_filter(
            "map", value, kwargs={"attribute": attribute}, context=context
        )
    return _join(context.meter, context.meter.text(d), value)


@pass_context
def _tojson(
    context: MeteredContext,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face has it: nothing is escaped for HTML."""
    meter = context.meter
    meter.read_deep(value)
    num_columns = len(indent) if isinstance(indent, str) else indent or 0
    extra = num_columns * meter.nesting(value) + sum(map(len, separators or ()))
    meter.allow(meter.size(value) * extra)
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return cast(str, meter.made(_owned(text, (value,))))


@pass_context
def _indent(
    context: MeteredContext,
    value: Any,
    width: int | str = 4,
    first: bool = False,
    blank: bool = False,
) -> Any:
    text = context.meter.text(value)
    num_columns = len(width) if isinstance(width, str) else width
    context.meter.allow(len(text) + (text.count("\n") + 1) * num_columns)
    return _JINJA_INDENT(context, text, width, first, blank)


_JINJA_INDENT = _on_bare_text("indent")


@pass_context
def _round(
    context: MeteredContext, value: float, precision: int = 0, method: Any = "common"
) -> Any:
    if not isinstance(precision, int) or abs(precision) > 20:
        raise TypeError("round takes a precision from -20 to 20")
    return JINJA_FILTERS["round"](value, precision, method)


@pass_context
def _format_filter(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
    return format_percent(context.meter, context.meter.text(value), kwargs or args)


@pass_context
def _escape(context: MeteredContext, value: Any) -> str:
    text = context.meter.text(value)
    return cast(str, context.meter.made(_owned(html.escape(text), (text,))))


FILTERS: dict[str, Operation] = {
    **{name: _paid(name, _pay_nothing) for name in ("count", "length")},
    **{name: _paid(name, _pay_nothing) for name in ("d", "default", "first", "last")},
    **{name: _paid(name, Meter.read_items) for name in ("abs", "float", "int")},
    **{name: _paid(name, Meter.read_items) for name in ("items", "list", "reverse")},
    **{name: _paid(name, _pay_calls) for name in ("map", "reject", "rejectattr")},
    **{name: _paid(name, _pay_calls) for name in ("select", "selectattr")},
    **{name: _sorting(name) for name in ("dictsort", "groupby", "max", "min", "sort", "unique")},
    **{name: _on_text(name) for name in ("capitalize", "lower", "trim", "upper")},
    **{name: _on_bare_text(name) for name in ("title", "truncate", "wordcount")},
    "e": _escape,
    "escape": _escape,
    "format": _format_filter,
    "indent": _indent,
    "join": _join_filter,
    "replace": _replace,
    "round": _round,
    "safe": printed,
    "string": printed,
    "tojson": _tojson,
    "!add": _add,
    "!compare": _compare,
    "!dict": _made_dict,
    "!made": _made,
    "!operand": _operand,
    "!step": _step,
    "!tilde": _tilde,
}
