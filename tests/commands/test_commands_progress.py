from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress as Bar

from headrace.commands import progress as view
from headrace.commands.progress import LINE_EVERY_BYTES, showing
from headrace.model.sources.base import Phase, Progress


def lines_of(*steps: Progress) -> list[str]:
    lines: list[str] = []
    shown = view._Lines("tiny", lines.append)
    for step in steps:
        shown.report(step)
    return lines


def test_a_log_has_a_line_for_each_tenth() -> None:
    lines = lines_of(*(Progress(Phase.DOWNLOADING, n * 1000, 1_000_000) for n in range(1001)))
    assert lines[0] == "tiny: downloading ..."
    assert lines[1] == "tiny: downloading 10 % (100.0 kB of 1.0 MB)"
    assert lines[-1] == "tiny: downloading 100 % (1.0 MB of 1.0 MB)"
    assert len(lines) == 11


def test_a_log_of_an_unknown_size_has_a_line_now_and_then() -> None:
    lines = lines_of(
        *(Progress(Phase.DOWNLOADING, n * LINE_EVERY_BYTES // 10) for n in range(31)),
    )
    assert lines == [
        "tiny: downloading ...",
        "tiny: downloading 64.0 MB",
        "tiny: downloading 128.0 MB",
        "tiny: downloading 192.0 MB",
    ]


def test_pieces_and_notes_are_told() -> None:
    lines = lines_of(
        Progress(Phase.ASKING, step="1 of 2"),
        Progress(Phase.ASKING, step="1 of 2", note="the index does not answer"),
        Progress(Phase.UNPACKING, 5, 10, step="1 of 2"),
        Progress(Phase.UNPACKING, 10, 10, step="1 of 2"),
        Progress(Phase.DOWNLOADING, 10, 10, step="2 of 2"),
    )
    assert lines == [
        "tiny: asking the source 1 of 2 ...",
        "tiny: the index does not answer",
        "tiny: unpacking 1 of 2 ...",
        "tiny: downloading 2 of 2 ...",
        "tiny: downloading 2 of 2 100 % (10 B of 10 B)",
    ]


STEPS = st.builds(
    Progress,
    st.sampled_from(Phase),
    st.integers(0, 10**10),
    st.none() | st.integers(0, 10**10),
    st.sampled_from(["", "1 of 2"]),
    st.sampled_from(["", "a note"]),
)


@given(st.lists(STEPS, max_size=30))
def test_any_steps_can_be_shown(steps: list[Progress]) -> None:
    assert all(line.isprintable() for line in lines_of(*steps))
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Bar(console=console, auto_refresh=False) as bar:
        bars = view._Bars("tiny", bar)
        for step in steps:
            bars.report(step)
        if steps:
            assert bar.tasks[0].completed == steps[-1].num_bytes


def test_a_terminal_sees_a_bar_for_each_phase() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Bar(console=console, auto_refresh=False) as bar:
        bars = view._Bars("tiny", bar)
        for step in (
            Progress(Phase.DOWNLOADING, 50, 100),
            Progress(Phase.DOWNLOADING, 100),
            Progress(Phase.VERIFYING, 25, 100, note="[not markup]"),
        ):
            bars.report(step)
            bar.refresh()
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for words in ("tiny: downloading", "50%", "100%", "tiny: verifying", "25%", "[not markup]"):
        assert words in seen


def test_no_terminal_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with showing("tiny") as report:
        report(Progress(Phase.DOWNLOADING, 100, 100))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "tiny: downloading ...\ntiny: downloading 100 % (100 B of 100 B)\n"
