"""`headrace chat` on a real terminal: a pseudo one."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gguf_models import SHAPES, write_model


class Terminal:
    """A process on a pseudo terminal."""

    def __init__(self, *command: str) -> None:
        mine, theirs = pty.openpty()
        # A session of its own, so that Ctrl-C goes to it alone.
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            close_fds=True,
            preexec_fn=lambda: _become_foreground(theirs),
        )
        os.close(theirs)
        self._fd = mine
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until `text` appears after all that was waited for before."""
        if not self.comes(text, seconds):
            pytest.fail(f"{text!r} did not come; the terminal shows {self.seen!r}")

    def comes(self, text: str, seconds: float) -> bool:
        end_at = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], 0.1)
            if ready:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            elif time.monotonic() > end_at or self.process.poll() is not None:
                return False
        self.seen = self.seen.split(text, 1)[1]
        return True

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C, as a person does: again where the first fell between two reads."""
        for _ in range(20):
            self.type("\x03")
            if self.comes(text, 1.0):
                return
        pytest.fail(f"{text!r} did not come after Ctrl-C; the terminal shows {self.seen!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def _become_foreground(fd: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    model = write_model(tmp_path / "tiny.gguf", SHAPES["llama"])
    program = "from headrace.cli import main; main()"
    options = ["--model", str(model), "--temperature", "1", "--seed", "1", "--max-tokens", "400"]
    terminal = Terminal(sys.executable, "-c", program, "chat", *options, "--stats")
    yield terminal
    terminal.close()


def test_talking_stopping_and_leaving(terminal: Terminal) -> None:
    terminal.wait_for("Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for(" prompt tokens (0 cached)")
    terminal.wait_for("> ")
    terminal.type("and a second turn\n")
    terminal.wait_for("tok/s")
    assert "(0 cached)" not in terminal.seen
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.interrupt_until("(Ctrl-D leaves)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
