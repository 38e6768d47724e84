from __future__ import annotations

import hashlib
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HashMismatch, InvalidRequest, SourceUnavailable
from headrace.model.pull import Phase, Progress, pull
from headrace.model.sources import web as web_source
from support.models import model_bytes
from support.web import FileServer

BODY = model_bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_source, "RETRY_WAITS_S", (0.0,) * 3)


def pull_partly(web: FileServer, num_bytes: int) -> None:
    """A pull that ends for good after so many bytes."""
    served = web.files["/m.gguf"]
    served.cuts = [num_bytes]
    served.statuses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_source, "RETRY_WAITS_S", ())
        with pytest.raises(SourceUnavailable, match="goes on from there"):
            pull(f"{web.url}/m.gguf")
    served.cuts = []


def test_a_file_arrives_whole(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    steps: list[Progress] = []
    pulled = pull(f"{web.url}/m.gguf?download=true", sha256=SHA256.upper(), report=steps.append)
    assert pulled.path == home / "models" / "m.gguf"
    assert pulled.path.read_bytes() == BODY
    assert (pulled.sha256, pulled.num_bytes) == (SHA256, len(BODY))
    downloading = [step for step in steps if step.phase == Phase.DOWNLOADING]
    assert downloading[-1].num_bytes == downloading[-1].total_bytes == len(BODY)
    assert [step.num_bytes for step in downloading] == sorted(s.num_bytes for s in downloading)
    assert not pull(f"{web.url}/m.gguf?download=true").is_new
    assert len(web.asked) == 1


def test_a_body_without_length_arrives_too(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY, has_length=False)
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == BODY


def test_a_stopped_pull_goes_on_where_it_was(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    pull_partly(web, 100_000)
    assert list((home / "models").glob("*.gguf")) == []
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == BODY
    assert web.ranges() == [None, "bytes=100000-"]
    assert web.asked[-1].headers["If-Range"] == '"one"'


def test_a_part_that_was_whole_needs_no_server(
    home: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.serve("/m.gguf", BODY)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("headrace.model.pull._checked", stop)
        pull(f"{web.url}/m.gguf")
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == BODY
    assert len(web.asked) == 1


def test_a_file_that_changed_meanwhile_is_fetched_anew(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    pull_partly(web, 100_000)
    changed = model_bytes(300_000, salt=b"v2")
    web.serve("/m.gguf", changed, etag='"two"')
    steps: list[Progress] = []
    assert pull(f"{web.url}/m.gguf", report=steps.append).path.read_bytes() == changed
    assert any("starting over" in step.note for step in steps)


def test_a_server_that_ignores_if_range_is_not_believed(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    pull_partly(web, 100_000)
    changed = model_bytes(300_000, salt=b"v2")
    web.serve("/m.gguf", changed, etag='"two"', minds_if_range=False)
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == changed
    assert web.ranges()[1:] == ["bytes=100000-", None]


def test_a_file_that_shrank_below_the_part_is_fetched_anew(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    pull_partly(web, 100_000)
    web.serve("/m.gguf", BODY[:50_000])
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == BODY[:50_000]


@pytest.mark.parametrize("how", [{"etag": ""}, {"etag": 'W/"weak"'}, {"has_ranges": False}])
def test_without_a_promise_nothing_is_spliced(
    home: Path, web: FileServer, how: dict[str, object]
) -> None:
    web.serve("/m.gguf", BODY, **how)
    pull_partly(web, 100_000)
    changed = model_bytes(300_000, salt=b"v2")
    web.serve("/m.gguf", changed, **how)
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == changed


def test_a_date_is_a_promise_where_there_is_no_etag(home: Path, web: FileServer) -> None:
    date = "Mon, 02 Nov 2026 10:00:00 GMT"
    served = web.serve("/m.gguf", BODY, etag="", headers={"Last-Modified": date})
    pull_partly(web, 100_000)
    served.etag = date  # What the server compares If-Range with.
    served.headers = {}
    pull(f"{web.url}/m.gguf")
    assert web.ranges()[-1] == "bytes=100000-"


def test_a_part_of_another_url_is_not_continued(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    pull_partly(web, 100_000)
    other = model_bytes(200_000, salt=b"other")
    web.serve("/other/m.gguf", other)
    assert pull(f"{web.url}/other/m.gguf").path.read_bytes() == other


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 120_000), max_size=6))
def test_however_the_connection_breaks_the_file_is_right(cuts: list[int]) -> None:
    with (
        FileServer() as server,
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HEADRACE_HOME", folder)
        patch.setattr(web_source, "RETRY_WAITS_S", (0.0,) * 8)
        server.serve("/m.gguf", BODY, cuts=list(cuts))
        assert pull(f"{server.url}/m.gguf", sha256=SHA256).path.read_bytes() == BODY


def test_a_busy_server_is_asked_again(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY, statuses=[503, 429])
    steps: list[Progress] = []
    assert pull(f"{web.url}/m.gguf", report=steps.append).path.read_bytes() == BODY
    assert ["503" in step.note or "429" in step.note for step in steps].count(True) == 2


def test_a_server_that_stays_busy_is_given_up(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY, statuses=[503] * 50)
    with pytest.raises(SourceUnavailable, match="503"):
        pull(f"{web.url}/m.gguf")
    assert len(web.asked) == 3


@pytest.mark.parametrize(("status", "words"), [(403, "given to everyone"), (410, "410")])
def test_a_refusal_is_final(home: Path, web: FileServer, status: int, words: str) -> None:
    web.serve("/m.gguf", BODY, statuses=[status])
    with pytest.raises(SourceUnavailable, match=words):
        pull(f"{web.url}/m.gguf")
    assert len(web.asked) == 1


def test_an_absent_file(home: Path, web: FileServer) -> None:
    with pytest.raises(SourceUnavailable, match=r"404.*Check the address"):
        pull(f"{web.url}/absent.gguf")


def test_a_wrong_hash_leaves_nothing(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    with pytest.raises(HashMismatch, match=f"{SHA256}, it should be {'0' * 64}"):
        pull(f"{web.url}/m.gguf", sha256="0" * 64)
    assert left_behind(home) == {"m.gguf.lock"}


def test_a_web_page_is_not_taken_for_a_model(home: Path, web: FileServer) -> None:
    web.serve("/org/repo/blob/main/m.gguf", b"<!doctype html><title>m.gguf</title>")
    with pytest.raises(SourceUnavailable, match="/resolve/ instead of /blob/"):
        pull(f"{web.url}/org/repo/blob/main/m.gguf")
    assert not list((home / "models").glob("*.gguf"))


def test_a_url_without_a_model_name_needs_one(home: Path, web: FileServer) -> None:
    web.serve("/get", BODY)
    with pytest.raises(InvalidRequest, match="--as NAME"):
        pull(f"{web.url}/get")
    assert pull(f"{web.url}/get", save_as="mine").path.name == "mine.gguf"


def test_nobody_there(home: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=r"cannot reach 127\.0\.0\.1: Connection refused"):
        pull(f"http://127.0.0.1:{port}/m.gguf")


def test_a_name_that_nobody_knows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceUnavailable, match="this machine is offline"):
        pull("https://models.invalid/m.gguf")


def test_redirects_are_followed_but_not_out_of_https(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    web.serve("/latest.gguf", b"", statuses=[302], headers={"Location": f"{web.url}/m.gguf"})
    assert pull(f"{web.url}/latest.gguf").path.read_bytes() == BODY
    redirects = web_source._Redirects()
    request = web_source.urllib.request.Request("https://host/m.gguf")
    with pytest.raises(SourceUnavailable, match="unprotected"):
        redirects.redirect_request(
            request, None, 302, "Found", web_source.http.client.HTTPMessage(), "http://host/m"
        )


def left_behind(home: Path) -> set[str]:
    return {path.name for path in (home / "models" / ".pull").iterdir()}
