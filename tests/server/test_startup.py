"""What a server needs not before it is ready comes afterwards; who asks for it meanwhile waits."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.server.serving import Serving
from support.asgi import Door, run, settle

_MODULES = ("headrace.server.app", "headrace.server.run", "headrace.server.reviving")
_LATER = ("sqlalchemy", "numpy", "structlog", "rich", "alembic")


def test_what_takes_long_to_import_is_not_imported_before_it_is_ready() -> None:
    program = f"import sys, {', '.join(_MODULES)}; print([m for m in {_LATER} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/conversations", {"id": "mill"}),
        ("/v1/responses", {"model": "fake", "input": "Hi"}),
    ],
)
def test_who_needs_the_database_waits_while_it_is_opened(
    tmp_path: Path, path: str, asked: dict[str, object]
) -> None:
    async def play() -> None:
        door = Door()
        serving = door.serving
        serving.conversations.expect()
        call = door.post(path, asked)
        for _ in range(20):
            await door.turn()
        assert not call.has_ended
        url = f"sqlite:///{tmp_path}/c.db"
        await asyncio.to_thread(serving.conversations.open, url)
        await door.answer(call)
        answered = json.loads(call.body)
        assert answered["object"] in ("conversation", "response")
        if path == "/v1/responses":  # it is kept, so it can be gone on from
            more = await door.answer(
                door.post(path, {**asked, "previous_response_id": answered["id"]})
            )
            assert more.status == 200
        serving.conversations.close()

    run(play)


def test_a_database_that_cannot_be_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").write_text("no folder")

    async def play() -> None:
        door = Door()
        door.serving.conversations.expect()
        call = door.post("/v1/conversations", {})
        await settle()
        assert not call.has_ended
        await asyncio.to_thread(Serving.open_conversations, door.serving)
        await door.answer(call)
        assert call.status == 503

    run(play)
