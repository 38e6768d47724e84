"""Record docs/terminal.svg: what a terminal shows for two commands, run for real just now.

.venv/bin/python docs/record_terminal.py
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = (
    'headrace generate --seed 1 --max-tokens 60 --stats "Name three rivers of Europe."',
    'echo "One sentence about rivers:" | headrace generate - --seed 2 --max-tokens 40 --stats',
)


def main() -> None:
    console = Console(record=True, width=100, quiet=False, file=io.StringIO())
    programs = Path(sys.executable).parent
    for command in COMMANDS:
        console.print(Text("$ " + command, style="bold green"))
        path = f"{programs}:{os.environ['PATH']}"
        run = subprocess.run(
            command,
            shell=True,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        console.print(Text(run.stdout.rstrip()))
        if run.stderr.strip():
            console.print(Text(run.stderr.strip(), style="dim"))
        console.print()
    console.save_svg(str(Path(__file__).with_name("terminal.svg")), title="headrace")


if __name__ == "__main__":
    main()
