"""A server in a process of its own: waited for, measured, and always stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from headrace.bench.serve.process import ServerProcess, _ticks_s, free_port
from headrace.errors import BenchError

SERVER = """
import sys, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    num_asked = 0
    def do_GET(self):
        Handler.num_asked += 1
        self.send_response(200 if Handler.num_asked > 2 else 503)
        self.end_headers()
    def log_message(self, *args): pass
print("up", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(code: str = SERVER, timeout_s: float = 20.0) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-c", code, str(port)]
    return ServerProcess("small", command, port, timeout_s=timeout_s)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_is_ready_inside_and_gone_outside() -> None:
    with server() as small:
        pid = small._process.pid
        assert is_running(pid) and small.ready_s > 0
        assert small.url == f"http://127.0.0.1:{small.port}/v1"
        assert 0 < small.cpu_s() < 20
    assert not is_running(pid)


def test_it_is_stopped_where_the_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), server() as small:
        raise ZeroDivisionError
    assert not is_running(small._process.pid)


def test_one_that_never_gets_ready_is_stopped() -> None:
    small = server("import time; print('thinking', flush=True); time.sleep(60)", timeout_s=0.3)
    with pytest.raises(BenchError, match=r"small is not ready after 0\.3 s"):
        small.__enter__()
    assert not is_running(small._process.pid)


def test_one_that_ends_at_once_is_quoted() -> None:
    with pytest.raises(BenchError, match="ended at once; it last said: no such model"):
        server("import sys; sys.exit('no such model')").__enter__()


def test_one_that_is_not_there() -> None:
    with pytest.raises(BenchError, match="cannot run /no/such: No such file"):
        ServerProcess("x", ["/no/such"], 1).__enter__()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux counts there")
def test_time_in_ticks() -> None:
    """Fields 14 and 15, whatever the process is called."""
    assert 0 < _ticks_s(Path("/proc/self/stat")) < 10_000


def test_ticks_behind_an_odd_name(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    fields = " ".join(str(number) for number in range(3, 30))
    stat.write_text(f"1 (a b) c) {fields}")
    assert _ticks_s(stat) == (14 + 15) / os.sysconf("SC_CLK_TCK")
