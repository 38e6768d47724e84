"""Servers whose streams are kept on disk, and servers that come after them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from headrace.engine.engine import Engine
from headrace.server.reviving import made_ready, revive
from support.asgi import Door, engine_saying

TEXT = "Water turns the wheel."


class House(Door):
    """A server whose streams are kept in a folder."""

    def __init__(
        self, folder: Path, engine: Engine | None = None, *, durability: str = "write", **more: Any
    ) -> None:
        self._folder = folder
        self._durability = durability
        super().__init__(engine or engine_saying(TEXT), **more)

    def load(self) -> None:
        self.serving.durable.open(self._folder, self._durability)
        self.serving.registry.load(
            self.serving.settings,
            open_engine=lambda named, config: self.engine,
            style_of=self.serving.style_of,
        )

    def revive(self) -> None:
        """As when the models are loaded."""
        revive(self.serving, made_ready(self.serving))

    def leave(self) -> None:
        """Its tests are over."""
        self.serving.streams.close()
        self.serving.durable.close()

    def after_death(self, engine: Engine | None = None, **more: Any) -> House:
        """Another server, with what is on disk now."""
        folder = self._folder.with_name(self._folder.name + "+")
        shutil.copytree(self._folder, folder)
        return House(folder, engine, **more)
