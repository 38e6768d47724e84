from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from headrace.commands.telling import told_plainly
from headrace.errors import ModelError


def test_an_error_on_purpose_is_one_line_and_an_exit_code() -> None:
    @click.command
    def command() -> None:
        with told_plainly():
            raise ModelError("the file is empty")

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "headrace: the file is empty\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), told_plainly():
        raise ZeroDivisionError
