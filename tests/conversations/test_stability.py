"""Templates that rewrite earlier turns are found out."""

from __future__ import annotations

import pytest

from headrace.conversations.stability import rewrites
from headrace.model.template import ChatTemplate

PLAIN = """\
{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\\n' }}{% endfor %}
{{- '<assistant>' }}"""
SHOWS = """\
{% for m in messages %}{{ '<' + m.role + '>' }}
{%- if m.reasoning_content %}{{ '[' + m.reasoning_content + ']' }}{% endif %}
{{- m.content + '\\n' }}{% endfor %}{{ '<assistant>' }}"""
DATED = "{{ strftime_now('%d %B %Y') }}" + PLAIN
OPENS = PLAIN.replace("'<assistant>'", "'<assistant><think></think>'")
REFUSES = "{{ raise_exception('no') }}"


@pytest.mark.parametrize(
    ("source", "thinks", "found"),
    [
        (PLAIN, False, ()),
        (PLAIN, True, ("reasoning",)),
        (SHOWS, True, ()),
        (DATED, False, ("date",)),
        (OPENS, False, ("history",)),
        (REFUSES, True, ()),
    ],
    ids=["plain", "drops thoughts", "shows thoughts", "tells the day", "opens thoughts", "refuses"],
)
def test_what_a_template_rewrites(source: str, thinks: bool, found: tuple[str, ...]) -> None:
    assert rewrites(ChatTemplate(source).render, source, thinks=thinks) == found
