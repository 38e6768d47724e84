from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.memory import free_memory, num_pool_banks
from headrace.errors import ModelError
from headrace.testing.fake_model import FakeModel

MIB = 2**20
SPEC = replace(FakeModel().spec, context_length=100, bank_size=16, bank_bytes=1000)


def machine(root: Path, files: dict[str, str]) -> Path:
    meminfo = f"MemTotal: 1 kB\nMemAvailable:    {4096 * 1024} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_groups_the_machine_decides(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, {})) == 4096 * MIB


def test_v2_takes_the_tightest_group_above_and_counts_idle_page_cache(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": f"{MIB}\n",
        "sys/fs/cgroup/a/memory.max": f"{100 * MIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{60 * MIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {5 * MIB}\n",
    }
    assert free_memory(machine(tmp_path, files)) == 45 * MIB


def test_v2_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/somewhere/on/the/host\n",
        "sys/fs/cgroup/memory.max": f"{100 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{60 * MIB}\n",
    }
    assert free_memory(machine(tmp_path, files)) == 40 * MIB


def test_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/box\n0::/\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{100 * MIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{90 * MIB}\n",
        "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {MIB}\n",
    }
    assert free_memory(machine(tmp_path, files)) == 11 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100\n",
        "sys/fs/cgroup/memory.current": "200\n",
    }
    assert free_memory(machine(tmp_path, files)) == 0


def test_this_machine_says_something() -> None:
    assert free_memory() > 0


def test_the_pool_is_no_larger_than_useful() -> None:
    assert num_pool_banks(SPEC, 4, None, free=10**9) == 4 * 7


def test_the_pool_takes_at_most_a_share_of_what_is_free() -> None:
    assert num_pool_banks(SPEC, 1000, None, free=80_000) == 20


def test_the_caller_may_say_how_much() -> None:
    assert num_pool_banks(SPEC, 1000, 30_000, free=0) == 30


def test_no_room_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ModelError, match="pool_bytes"):
        num_pool_banks(SPEC, 4, None, free=5000)
