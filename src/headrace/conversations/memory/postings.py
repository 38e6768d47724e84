"""Which chunks have which words: an inverted index in the database, one of each kind.

In: a connection, keys of words (`words.py`). Out: numbers of chunks. Thread: a database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, text

from headrace.conversations.memory.words import MAX_POSTINGS

_ADD_SQLITE = text("INSERT INTO chunk_words(rowid, words) VALUES (:chunk, :words)")
_ADD_POSTGRESQL = text(
    "INSERT INTO chunk_words(chunk, words) "
    "VALUES (:chunk, array_to_tsvector(string_to_array(:words, ' ')))"
)
_COUNT_SQLITE = (
    f"(SELECT count(*) FROM (SELECT 1 FROM chunk_words WHERE chunk_words MATCH ? "
    f"LIMIT {MAX_POSTINGS + 1}))"
)
_FIND_SQLITE = "SELECT {place}, group_concat(rowid) FROM chunk_words WHERE chunk_words MATCH ?"
_FIND_POSTGRESQL = text(
    "SELECT wanted.key, near.chunk FROM unnest(CAST(:keys AS text[])) AS wanted(key), "
    "LATERAL (SELECT chunk FROM chunk_words "
    "WHERE words @@ CAST('''' || wanted.key || '''' AS tsquery) LIMIT :most) AS near"
)


def add_words(connection: Connection, keys: Iterable[tuple[int, Sequence[str]]]) -> None:
    """For each chunk, by its number, the keys of its words."""
    rows = [{"chunk": chunk, "words": " ".join(words)} for chunk, words in keys if words]
    if rows:
        is_postgresql = connection.dialect.name == "postgresql"
        connection.execute(_ADD_POSTGRESQL if is_postgresql else _ADD_SQLITE, rows)


def chunks_with(connection: Connection, keys: Sequence[str]) -> dict[str, list[int]]:
    """For each key the chunks that have it; keys that more than `MAX_POSTINGS` have are left
    out."""
    if not keys:
        return {}
    find = _find_postgresql if connection.dialect.name == "postgresql" else _find_sqlite
    found: dict[str, list[int]] = {key: [] for key in keys}
    for key, chunk in find(connection, keys):
        found[key].append(chunk)
    return {key: sorted(rows) for key, rows in found.items() if 0 < len(rows) <= MAX_POSTINGS}


def _find_sqlite(connection: Connection, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    # The driver's own rows: SQLAlchemy's take longer than the search.
    cursor = connection.connection.cursor()
    words = [f'"{key}"' for key in keys]
    # Counted first, as to count a common word's chunks costs far less than to hear of each; and a
    # row a word, as other threads have their turn before each row.
    cursor.execute("SELECT " + ", ".join([_COUNT_SQLITE] * len(keys)), words)
    (counts,) = cursor.fetchall()
    rare = [place for place, count in enumerate(counts) if 0 < count <= MAX_POSTINGS]
    if rare:
        parts = (_FIND_SQLITE.format(place=place) for place in rare)
        cursor.execute(" UNION ALL ".join(parts), [words[place] for place in rare])
        for place, listed in cursor.fetchall():
            yield from ((keys[place], int(chunk)) for chunk in listed.split(","))


def _find_postgresql(connection: Connection, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    wanted = {"keys": list(keys), "most": MAX_POSTINGS + 1}
    for row in connection.execute(_FIND_POSTGRESQL, wanted):
        yield row[0], row[1]
