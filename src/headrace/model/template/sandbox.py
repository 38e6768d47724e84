"""Jinja for templates that nobody has read: nothing to break out to, and a budget for the rest.

Templates come with model files, from anywhere. Jinja's immutable sandbox keeps them from Python's
insides; `meter.py` gives them no more time and memory than an honest template could need,
`rewriting.py` makes them pay, `operations.py` says for what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from jinja2 import nodes
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from headrace.model.template.meter import CONTAINERS, Meter, MeteredContext
from headrace.model.template.operations import (
    COMPARING_TESTS,
    FILTERS,
    METHODS,
    call_text_method,
    check_power,
    check_product,
    format_percent,
    make_dict,
    make_namespace,
    printed,
)
from headrace.model.template.origins import Traced, concatenated, written_by_message
from headrace.model.template.rewriting import Metering


class _GenerationTag(Extension):
    """`{% generation %}` marks answers for training; for rendering it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one chat template: Hugging Face's dialect, metered and traced."""

    context_class = MeteredContext
    concat = staticmethod(concatenated)
    intercepted_binops = frozenset({"-", "*", "/", "//", "%", "**"})

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=printed,
            # Folding constants would run operations before there is a meter.
            optimized=False,
        )
        self.filters = dict(FILTERS)
        self.tests.update(COMPARING_TESTS)
        self.globals = {
            "range": self.globals["range"],
            "namespace": make_namespace,
            "dict": make_dict,
            **functions,
        }

    def compile_metered(self, source: str, filename: str) -> Template:
        """Raises Jinja's errors, and the compiler's for what is too deep."""
        tree = Metering().visit(self.parse(source, filename=filename))
        tree.set_environment(self)
        code = self.compile(tree, filename=filename)
        return self.template_class.from_code(self, code, self.make_globals(None))

    def pieces(self, template: Template, variables: dict[str, Any], meter: Meter) -> Iterator[str]:
        """The output, piece by piece. Errors have the template's lines in their traceback."""
        context = cast(MeteredContext, template.new_context(variables))
        context.meter = meter
        try:
            yield from template.root_render_func(context)
        except Exception:
            self.handle_exception()

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kinds, names in METHODS:
            if isinstance(obj, kinds):
                return attr in names
        return isinstance(obj, Namespace | LoopContext | Macro | BlockReference)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or getattr(value, "__name__", None) != "format":
            return None
        bare = super().wrap_str_format(str.__str__(owner).format)
        if bare is None or not isinstance(owner, Traced):
            return bare

        def traced_format(*args: Any, **kwargs: Any) -> str:
            return written_by_message(bare(*args, **kwargs))

        traced_format.__name__ = "format"
        traced_format.__wrapped__ = value  # type: ignore[attr-defined]
        return traced_format

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - names that no keyword can have
        meter = cast(MeteredContext, __context).meter
        meter.spend(1)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            for name in ("_loop_vars", "_block_vars"):  # which Jinja adds for its own callables
                kwargs.pop(name, None)
            return call_text_method(meter, owner, __obj, args, kwargs)
        if isinstance(owner, (LoopContext, *CONTAINERS)):
            meter.read_items(owner)
            for argument in args:
                meter.read_deep(argument)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, dict) and __obj.__name__ != "get":
            result = list(result)
        return meter.made(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = cast(MeteredContext, context).meter
        if operator == "%" and isinstance(left, str):
            return format_percent(meter, left, right)
        if operator == "**":
            check_power(left, right)
        elif operator == "*":
            check_product(meter, left, right)
        return meter.made(super().call_binop(context, operator, left, right))
