"""Which statements are writes, and to which tracked tables. No SQL parser: a statement that is not known to be harmless is a write.

Only a plain INSERT, UPDATE, DELETE, REPLACE, MERGE, TRUNCATE or COPY FROM whose target is the table of a model is judged by its target, and a
change of the schema by the tables in its text. Everything else that does not begin with a harmless word is a write to every tracked table.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, NamedTuple

from . import tracking

LONG = 10_000
"""Texts with fewer characters are judged once."""

CONTROL = re.compile(r"(BEGIN|SET TRANSACTION)\b")
"""How a snapshot begins, on SQLite and on PostgreSQL. These statements neither read nor write, so they are not counted as queries."""

READS_NOTHING = re.compile(r"\s*(BEGIN|SET\s+TRANSACTION|SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
"""Transaction control, which a response cannot depend on."""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL | re.VERBOSE)


# What a text is made of.

LEAD = _compiled(r"(?: [\s;] | --[^\n\r]*(?:\r?\n|\Z) | /\*(?:(?!/\*).)*?\*/ )*+")
"""What may stand before a statement. A comment that servers read differently (nested, or ended by a lone CR) is left, and looks like a write."""

SPECIAL = _compiled(r"['$`] | -- | /\*")

TOKEN = _compiled(
    r"""'(?P<literal>[^']*)' | (?P<name>"[^"]*") | (?P<line>--[^\n\r]*+(?!\r(?!\n))) | /\*(?P<comment>.*?)\*/
    | (?<![\w$]) \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$"""
)

UNSURE = _compiled(r"""['`] | -- | /\* | \*/""")
"""What is left in a text only if its quotes and comments were not understood."""

BRACKETED = _compiled(r"""\[[^\]]*['"$/-]""")
"""SQLite takes brackets for quotes, PostgreSQL does not."""

IDENTIFIER = r'(?: "(?:[^"]|"")++" | [^\W\d][\w$]*+ )'
NAME = rf"{IDENTIFIER} (?: \s*+ \. \s*+ {IDENTIFIER} )*+ (?! \s*+ \. )"
PART = _compiled(r'"((?:[^"]|"")+)" | ([^\W\d][\w$]*)')

# How statements begin.

HARMLESS = _compiled(
    r"""[\s(]* (?:
      SELECT | VALUES | TABLE | SHOW | SET | RESET | DISCARD | PRAGMA | LISTEN | UNLISTEN | NOTIFY | LOCK | CHECKPOINT | ANALYZE | VACUUM | REINDEX
    | BEGIN | START | SAVEPOINT | RELEASE | ROLLBACK\s+(?:(?:WORK|TRANSACTION)\s+)?TO
    | DECLARE | FETCH | MOVE | CLOSE | PREPARE | DEALLOCATE
    | (?:CREATE|DROP)\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY
    | (?:CREATE|ALTER|DROP)\s+DATABASE | ALTER\s+SYSTEM
    )\b"""
)
"""Statements that write no row. (Many of them are refused inside a transaction, so they cannot wait for a COMMIT of ours.)"""

EXPORT = _compiled(rf"COPY\s+(?: {NAME} \s*(?:\([^()]*\))? \s* TO\b | \(\s*(?:SELECT|VALUES|TABLE)\b ) (?!.*\bPROGRAM\b)")
MAKES_A_TABLE = _compiled(r'[\s(]* SELECT\b .* (?<!") \b INTO \b (?!")')

ENDS = _compiled(r"(COMMIT | END | ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b) | ABORT | PREPARE\s+TRANSACTION)\b")
COMMITS_ANOTHER = _compiled(r"COMMIT\s+PREPARED\b")
RELEASE = _compiled(r"RELEASE\b")
BODY = _compiled(r"(?:CREATE|DO)\b.*\bBEGIN\b")
"""The body of a trigger or a function, whose END ends no transaction."""

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
"""A write inside a write: PostgreSQL's data-modifying CTE."""
READS_ONLY = _compiled(r"WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b)")

SCHEMA = _compiled(
    r"""(?: CREATE | COMMENT | GRANT | REVOKE
    | (?:ALTER|DROP)\s+(?:TABLE|(?:MATERIALIZED\s+)?VIEW|INDEX|SEQUENCE|TRIGGER|FUNCTION|PROCEDURE|EXTENSION) )\b"""
)
CASCADE = _compiled(r"(?<!\bDELETE\s)(?<!\bUPDATE\s)\bCASCADE\b")
"""That of DROP, not that of a foreign key."""

EXPLAIN = _compiled(r"EXPLAIN\b")
ANALYZE = _compiled(r"\bANALY[SZ]E\b")
RUNS = _compiled(r"\bANALY[SZ]E\b(?!\s+(?:false|off|0)\b)")
EXPLAINED = _compiled(r"EXPLAIN \s* (?: \((?P<options>[^()]*)\) | (?P<analyze>ANALY[SZ]E\b) (?:\s*VERBOSE\b)? ) \s*")


class Judgement(NamedTuple):
    """What a text does."""

    ends: str
    """The words that end the transaction it is in, or might; empty if there are none."""
    alone: bool
    """Whether ending the transaction is all that it does."""
    releases: bool
    """Whether it releases a savepoint."""
    tables: frozenset[str]
    """The tracked tables that it may write: keys of `tracking.tables()`."""


NOTHING: frozenset[str] = frozenset()


def text_of(sql: Any, connection: Any) -> str:
    """The text of a statement as a driver takes it: str, bytes, or one of psycopg's `sql` objects and template strings. Raises TypeError for others."""
    if isinstance(sql, str):
        return sql
    if isinstance(sql, bytes):
        return sql.decode(errors="replace")
    if (text := connection.text_of(sql)) is None:
        kinds = "str, bytes, psycopg's sql objects or a template string"
        raise TypeError(f"A statement of type {type(sql).__name__} is refused, because its text cannot be read. Pass {kinds}.")
    return str(text)


def ends_transaction(sql: str) -> bool:
    """Whether a text ends the transaction that it is in, or might."""
    return bool(judge(sql).ends)


def written_tables(sql: str) -> frozenset[str]:
    """The tracked tables that a text may write.

    A write through a function (`SELECT f()`), a rule or a trigger is not seen.
    """
    return judge(sql).tables


def judge(sql: str) -> Judgement:
    """What a text does, looked up for a text that was judged before."""
    return _remembered(sql) if len(sql) < LONG else _judge(sql)


def _judge(sql: str) -> Judgement:
    pieces = pieces_of(sql)
    ends = [found[1].upper() for at, piece in enumerate(pieces) if (found := ENDS.match(piece)) and not (at and _is_end_of_body(found[1], pieces[0]))]
    alone = len(pieces) == 1 and not COMMITS_ANOTHER.match(pieces[0])
    return Judgement(" ".join(ends[:1]), alone, any(map(RELEASE.match, pieces)), _tables_of(pieces, sql))


_remembered = tracking.until_the_models_change(lru_cache(maxsize=1024)(_judge))
"""Django sends the same texts again and again with other parameters. A long text names many rows, is not sent again, and is not kept."""


def _is_end_of_body(verb: str, first: str) -> bool:
    return verb.upper() == "END" and bool(BODY.match(first))


def pieces_of(sql: str) -> list[str]:
    """The statements of a text, without comments before them. A semicolon that may stand in a literal separates, too."""
    return [piece for part in _without_literals(sql).split(";") if (piece := LEAD.sub("", part, count=1).strip())]


def _without_literals(sql: str) -> str:
    """A text with its literals empty and its comments blank; or as it is, where servers would disagree about which those are."""
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
    if _is_harmless(piece) or READS_ONLY.match(sql[LEAD.match(sql).end() :]):  # type: ignore[union-attr]  # which matches nothing, too
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
    """EXPLAIN runs its statement if it is told to ANALYZE."""
    if not ANALYZE.search(piece):
        return NOTHING
    explained = EXPLAINED.match(piece)
    if not explained:
        return frozenset(tracking.tables())
    return _tables_of_one(piece[explained.end() :], sql) if explained["analyze"] or RUNS.search(explained["options"]) else NOTHING


def names_of(name: str) -> tuple[str, ...]:
    """The parts of a name in SQL, as PostgreSQL reads them: without quotes a name is in lower case."""
    return tuple(quoted.replace('""', '"') if quoted else plain.lower() for quoted, plain in PART.findall(name))


def _names_of_table(table: str) -> tuple[str, ...]:
    """The parts of a `db_table`. Django quotes it, unless it is quoted already."""
    return names_of(table if table.startswith('"') and table.endswith('"') else f'"{table}"')


@tracking.until_the_models_change
@cache
def _known() -> dict[tuple[str, ...], str]:
    return {_names_of_table(table): table for table in {*tracking.tables(), *tracking.other_tables()}}


@tracking.until_the_models_change
@cache
def _mention() -> tuple[re.Pattern[str], dict[str, set[str]]]:
    """Finds tracked tables by the last part of their names."""
    tables: dict[str, set[str]] = {}
    for table in tracking.tables():
        tables.setdefault(_names_of_table(table)[-1].lower(), set()).add(table)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, tables)) or '(?!)'})(?!\w)", re.IGNORECASE), tables


def _mentioned(sql: str) -> frozenset[str]:
    pattern, tables = _mention()
    return frozenset(table for found in pattern.findall(sql) for table in tables[found.lower()])


def may_write(script: str) -> bool:
    """Whether a text of many statements may write a tracked table."""
    return any(_tables_of_one(piece, piece) for piece in pieces_of(script))
