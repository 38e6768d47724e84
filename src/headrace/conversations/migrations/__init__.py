"""Brings a database's tables up to date: what `versions/` says, in order, by Alembic.

Several servers may start at once: the first does it, the others wait for it. A new version is a
file beside the others, whose `down_revision` names the one before it.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text

from headrace.errors import DatabaseFailed

HEAD = "0003"
"""The newest version. A database that has it is not looked at any further. Each has a number, in
four digits."""
_LOCK = 0x6865_6164
"""Among PostgreSQL's advisory locks."""


def migrate(connection: Connection) -> None:
    """Bring the tables up to date, in one transaction. Raises `SQLAlchemyError`, and
    `DatabaseFailed` for a database of a later version of ours; then nothing has changed."""
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = _version(connection)
        if found is not None and found > HEAD:
            raise DatabaseFailed(
                f"the database was written by a later headrace: it has version {found}, and this "
                f"one knows up to {HEAD}; update headrace, or name another database"
            )
        if found != HEAD:
            _upgrade(connection)


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    # Takes a while to import, and is not needed once the tables are there.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
