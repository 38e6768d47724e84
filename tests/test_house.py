"""The house as ARCHITECTURE.md draws it: layers, first sentences, and the page itself."""

from __future__ import annotations

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "headrace"
LAYERS = [
    "cli",
    "commands",
    "bench",
    "server",
    "conversations",
    "testing",
    "streams",
    "engine",
    "model",
    "observe",
    "wire",
    "events",
    "errors settings",
]
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _layer(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms.split())


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports when it runs; what only type checkers read does not count."""
    names: list[str] = []
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    rooms = {name.split(".")[1] for name in names if name.startswith("headrace.")}
    return {
        room for room in rooms if (PACKAGE / room).exists() or (PACKAGE / f"{room}.py").exists()
    }


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_typing else self.generic_visit(node)

    return Strip().visit(tree)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    room = _room(path)
    if room in ("__init__", "__main__", "_native"):
        return
    upward = {other for other in _imported_rooms(path) if _layer(other) < _layer(room)}
    assert not upward, f"{room} may not import {upward}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    source = path.read_text()
    if source.strip():
        assert ast.get_docstring(ast.parse(source))


def test_scheduling_decisions_are_values() -> None:
    for name in ("scheduler", "sequence", "kv_cache", "prefix_index", "waiting_line", "text"):
        source = (PACKAGE / "engine" / f"{name}.py").read_text()
        forbidden = r"^\s*(?:import|from) (time|socket|threading|asyncio|headrace\.model)\b"
        assert not re.findall(forbidden, source, re.MULTILINE), name


def test_the_page_names_files_that_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = "engine|model|native|template|server|streams|wire|observe"
    for name in re.findall(rf"`((?:{rooms})/[\w/.]+)`", page):
        candidates = [PACKAGE / name, ROOT / name, PACKAGE / "model" / name]
        assert any(path.exists() for path in candidates), name
    for name in re.findall(r"^((?:engine|model|server|streams)/[\w/.]+)", page, re.MULTILINE):
        assert (PACKAGE / name).exists(), name


def test_every_room_is_on_the_page() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for room in PACKAGE.iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"  {room.name}/" in page, room.name


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text().partition("## What we stand on")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    wanted = [*project["dependencies"], *extras]
    for requirement in wanted:
        name = re.split(r"[<>=!~\[ ]", requirement)[0]
        assert f"`{name}`" in page, name


def test_every_development_tool_is_named() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text().partition("\nDevelopment: ")[2]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for requirement in chain.from_iterable(groups.values()):
        name = re.split(r"[<>=!~\[ ]", requirement)[0]
        assert f"`{name}`" in page, name
