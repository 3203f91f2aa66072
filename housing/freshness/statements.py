"""Decides which tracked tables a raw SQL statement writes. This is not a parser: a statement that is not known to be harmless is a write.

A plain INSERT, UPDATE, DELETE, REPLACE, MERGE, TRUNCATE or COPY FROM on a model's table writes its target. A change of the schema writes the tables in
its text. Every other statement writes every tracked table, unless it begins with a harmless word.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, NamedTuple

from . import tracking

LONG = 10_000
"""The judgements of texts with fewer characters are cached."""

CONTROL = re.compile(
    r"(?:[\s;]|--[^\r\n]*(?:\r?\n|\Z)|/\*(?!!).*?\*/)*+"
    r"(BEGIN|START\s+TRANSACTION|SET\s+TRANSACTION|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|END|ABORT|PREPARE\s+TRANSACTION)\b[^;]*+;?\s*+\Z",
    re.IGNORECASE | re.DOTALL,
)
"""Transaction control. It is not counted as a query, and a response cannot depend on it. A text that goes on after it is no longer control."""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL | re.VERBOSE)


# The parts of a text.

LEAD = _compiled(r"(?: [\s;] | --[^\n\r]*(?:\r?\n|\Z) | /\*(?:(?!/\*).)*?\*/ )*+")
"""Whitespace and comments before a statement. A comment that servers read differently (nested, or ended by a lone CR) stays, so it looks like a write."""

SPECIAL = _compiled(r"['$`] | -- | /\*")

TOKEN = _compiled(
    r"""'(?P<literal>[^']*)' | (?P<name>"[^"]*") | (?P<line>--[^\n\r]*+(?!\r(?!\n))) | /\*(?P<comment>.*?)\*/
    | (?<![\w$]) \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$"""
)

UNSURE = _compiled(r"""['`] | -- | /\* | \*/""")
"""Characters that remain only if quotes or comments were misread."""

BRACKETED = _compiled(r"""\[[^\]]*['"$/-]""")
"""Brackets quote names on SQLite only."""

IDENTIFIER = r'(?: "(?:[^"]|"")++" | [^\W\d][\w$]*+ )'
NAME = rf"{IDENTIFIER} (?: \s*+ \. \s*+ {IDENTIFIER} )*+ (?! \s*+ \. )"
PART = _compiled(r'"((?:[^"]|"")+)" | ([^\W\d][\w$]*)')

# The beginnings of statements.

HARMLESS = _compiled(
    r"""[\s(]* (?:
      SELECT | VALUES | TABLE | SHOW | SET | RESET | DISCARD | PRAGMA | LISTEN | UNLISTEN | NOTIFY | LOCK | CHECKPOINT | ANALYZE | VACUUM | REINDEX
    | BEGIN | START | SAVEPOINT | RELEASE | ROLLBACK\s+(?:(?:WORK|TRANSACTION)\s+)?TO
    | DECLARE | FETCH | MOVE | CLOSE | PREPARE | DEALLOCATE
    | (?:CREATE|DROP)\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY
    | (?:CREATE|ALTER|DROP)\s+DATABASE | ALTER\s+SYSTEM
    )\b"""
)
"""Statements that write no row. Many of them are refused in a transaction, so they cannot be tagged anyway."""

EXPORT = _compiled(rf"COPY\s+(?: {NAME} \s*(?:\([^()]*\))? \s* TO\b | \(\s*(?:SELECT|VALUES|TABLE)\b ) (?!.*\bPROGRAM\b)")
MAKES_A_TABLE = _compiled(r'[\s(]* SELECT\b .* (?<!") \b INTO \b (?!")')

ENDS = _compiled(r"(COMMIT | END | ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b) | ABORT | PREPARE\s+TRANSACTION)\b")
COMMITS_ANOTHER = _compiled(r"COMMIT\s+PREPARED\b")
RELEASE = _compiled(r"RELEASE\b")
BODY = _compiled(r"(?:CREATE|DO)\b.*\bBEGIN\b")
"""A trigger or function with a body, whose END does not end the transaction."""

PLAIN = _compiled(
    rf"""(?P<verb> INSERT\s+INTO | (?:INSERT\s+OR\s+\w+|REPLACE|MERGE)\s+INTO | UPDATE(?:\s+OR\s+\w+)? | DELETE\s+FROM )
    (?:\s+ONLY)? \s*+ (?P<target>{NAME})"""
)
IMPORT = _compiled(rf"(?P<verb>COPY) \s*+ (?P<target>{NAME}) \s* (?:\([^()]*\))? \s* FROM\b")
ONLY_ADDS = _compiled(r"INSERT\s+INTO | COPY")
TRUNCATE = _compiled(
    rf"""TRUNCATE (?:\s+TABLE)? \s+ (?P<targets> {NAME} \s*+ \*? (?: \s* , \s* {NAME} \s*+ \*? )*+ )
    \s* (?:(?:RESTART|CONTINUE)\s+IDENTITY)? \s* (?:RESTRICT)? \Z"""
)
QUALIFIED = _compiled(NAME)

HIDDEN = _compiled(r"\bWITH\b.*\b(?:INSERT|UPDATE|DELETE|MERGE)\b")
"""A data-modifying CTE of PostgreSQL."""
READS_ONLY = _compiled(r"WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b)")

SCHEMA = _compiled(
    r"""(?: CREATE | COMMENT | GRANT | REVOKE
    | (?:ALTER|DROP)\s+(?:TABLE|(?:MATERIALIZED\s+)?VIEW|INDEX|SEQUENCE|TRIGGER|FUNCTION|PROCEDURE|EXTENSION) )\b"""
)
CASCADE = _compiled(r"(?<!\bDELETE\s)(?<!\bUPDATE\s)\bCASCADE\b")
"""The CASCADE of DROP, not of a foreign key."""

EXPLAIN = _compiled(r"EXPLAIN\b")
ANALYZE = _compiled(r"\bANALY[SZ]E\b")
RUNS = _compiled(r"\bANALY[SZ]E\b(?!\s+(?:false|off|0)\b)")
EXPLAINED = _compiled(r"EXPLAIN \s* (?: \((?P<options>[^()]*)\) | (?P<analyze>ANALY[SZ]E\b) (?:\s*VERBOSE\b)? ) \s*")


class Judgement(NamedTuple):
    """The effects of a text."""

    ends: str
    """The keyword that may end the current transaction, or an empty text."""
    alone: bool
    """Whether ending the transaction is its only effect."""
    releases: bool
    """Whether it releases a savepoint."""
    tables: frozenset[str]
    """The tracked tables that it may write: keys of `tracking.tables()`."""


NOTHING: frozenset[str] = frozenset()


def text_of(sql: Any, connection: Any) -> str:
    """Return the text of a statement, which may be str, bytes, a psycopg `sql` object or a template string. Raises TypeError for other types."""
    if isinstance(sql, str):
        return sql
    if isinstance(sql, bytes):
        return sql.decode(errors="replace")
    if (text := connection.text_of(sql)) is None:
        kinds = "str, bytes, psycopg's sql objects or a template string"
        raise TypeError(f"A statement of type {type(sql).__name__} is refused, because its text cannot be read. Pass {kinds}.")
    return str(text)


def ends_transaction(sql: str) -> bool:
    """Whether a text may end the current transaction."""
    return bool(judge(sql).ends)


def written_tables(sql: str) -> frozenset[str]:
    """Return the tracked tables that a text may write.

    A write by a function (`SELECT f()`), a rule or a trigger is not seen.
    """
    return judge(sql).tables


def judge(sql: str) -> Judgement:
    """Return the effects of a text, which are cached."""
    return _remembered(sql) if len(sql) < LONG else _judge(sql)


def _judge(sql: str) -> Judgement:
    pieces = pieces_of(sql)
    ends = [found[1].upper() for at, piece in enumerate(pieces) if (found := ENDS.match(piece)) and not (at and _is_end_of_body(found[1], pieces[0]))]
    alone = len(pieces) == 1 and not COMMITS_ANOTHER.match(pieces[0])
    return Judgement(" ".join(ends[:1]), alone, any(map(RELEASE.match, pieces)), _tables_of(pieces, sql))


_remembered = tracking.until_the_models_change(lru_cache(maxsize=1024)(_judge))
"""Django repeats texts with other parameters. A long text has many values and is not repeated, so it is not cached."""


def _is_end_of_body(verb: str, first: str) -> bool:
    return verb.upper() == "END" and bool(BODY.match(first))


def pieces_of(sql: str) -> list[str]:
    """Return the statements of a text without leading comments. A semicolon that may be in a literal separates, too."""
    return [piece for part in _without_literals(sql).split(";") if (piece := LEAD.sub("", part, count=1).strip())]


def _without_literals(sql: str) -> str:
    """Return a text with empty literals and blank comments, or unchanged if servers may read it differently."""
    if not SPECIAL.search(sql):
        return sql
    if "\\" in sql or BRACKETED.search(sql):
        return sql
    nested = False

    def blank(token: re.Match[str]) -> str:
        nonlocal nested
        nested = nested or "/*" in (token["comment"] or "")
        return token["name"] or (" " if token["comment"] is not None or token["line"] is not None else "''")

    blanked = TOKEN.sub(blank, sql)
    return sql if nested or UNSURE.search(blanked.replace("''", "")) or blanked.count('"') % 2 else blanked


def _tables_of(pieces: list[str], sql: str) -> frozenset[str]:
    if len(pieces) == 1:
        return _tables_of_one(pieces[0], sql)
    return NOTHING if all(map(_is_harmless, pieces)) else frozenset(tracking.tables())


def _is_harmless(piece: str) -> bool:
    return bool((HARMLESS.match(piece) and not MAKES_A_TABLE.match(piece)) or ENDS.match(piece) or EXPORT.match(piece))


def _tables_of_one(piece: str, sql: str) -> frozenset[str]:
    everything = frozenset(tracking.tables())
    if _is_harmless(piece) or READS_ONLY.match(LEAD.sub("", sql, count=1)):
        return NOTHING
    if EXPLAIN.match(piece):
        return _tables_of_explained(piece, sql)
    if SCHEMA.match(piece) or MAKES_A_TABLE.match(piece):
        return everything if CASCADE.search(piece) or HIDDEN.search(piece) else _mentioned(sql)
    if plain := PLAIN.match(piece) or IMPORT.match(piece):
        targets, rest, deletes = [plain["target"]], piece[plain.end() :], not ONLY_ADDS.fullmatch(plain["verb"])
    elif truncate := TRUNCATE.match(piece):
        targets, rest, deletes = QUALIFIED.findall(truncate["targets"]), "", True
    else:
        return everything
    if HIDDEN.search(rest) or not all(names_of(target) in _known() for target in targets):
        return everything
    written = {_known()[names_of(target)] for target in targets}
    cascaded = [tracking.cascades().get(table, NOTHING) for table in written if deletes]
    touched = everything & written.union(*cascaded) | _mentioned(sql)
    return touched if all(tracking.tables()[table].managed for table in touched) else everything


def _tables_of_explained(piece: str, sql: str) -> frozenset[str]:
    """Return the tables of EXPLAIN, which executes its statement with ANALYZE only."""
    if not ANALYZE.search(piece):
        return NOTHING
    explained = EXPLAINED.match(piece)
    if not explained:
        return frozenset(tracking.tables())
    return _tables_of_one(piece[explained.end() :], sql) if explained["analyze"] or RUNS.search(explained["options"]) else NOTHING


def names_of(name: str) -> tuple[str, ...]:
    """Return the parts of a name in SQL, as PostgreSQL reads them: unquoted names are in lower case."""
    return tuple(quoted.replace('""', '"') if quoted else plain.lower() for quoted, plain in PART.findall(name))


def _names_of_table(table: str) -> tuple[str, ...]:
    """Return the parts of a `db_table`, which Django quotes unless it is quoted already."""
    return names_of(table if table.startswith('"') and table.endswith('"') else f'"{table}"')


@tracking.until_the_models_change
@cache
def _known() -> dict[tuple[str, ...], str]:
    return {_names_of_table(table): table for table in {*tracking.tables(), *tracking.other_tables()}}


@tracking.until_the_models_change
@cache
def _mention() -> tuple[re.Pattern[str], dict[str, set[str]]]:
    """Return a pattern for the last parts of the names of tracked tables, and the tables of each."""
    tables: dict[str, set[str]] = {}
    for table in tracking.tables():
        tables.setdefault(_names_of_table(table)[-1].lower(), set()).add(table)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, tables)) or '(?!)'})(?!\w)", re.IGNORECASE), tables


def _mentioned(sql: str) -> frozenset[str]:
    pattern, tables = _mention()
    return frozenset(table for found in pattern.findall(sql) for table in tables[found.lower()])


def may_write(script: str) -> bool:
    """Whether a script may write a tracked table."""
    return any(_tables_of_one(piece, piece) for piece in pieces_of(script))
