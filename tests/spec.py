"""Writes SPEC.md and SPEC-TOOLS.md from the specs: `python -m tests.spec`. With `--check` it fails if either file is out of date.

A chapter is a file of specs, a sentence is the name of a spec, its reason is the docstring, and the reasons of its numbers are each `because`.
A limitation is listed in its chapter as `NOT_PROMISED = {sentence: why}`. The files contain promises and no measurements, so the same specs
always give the same bytes.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tests import ROOT
from tests.fixtures import trace
from tests.stacks import STACKS


@dataclass(frozen=True)
class Document:
    """A file of promises: its name, its title, what stands below the title, and its chapters in the order in which they are read."""

    name: str
    title: str
    head: str
    chapters: tuple[str, ...]


GLOSSARY = {
    "endpoint": "One of the three addresses of the same listings. Each is a *variant*: naive, optimized or cached.",
    "entry": "A cached response in Redis, together with its tags.",
    "tag": "A name for something that a response depends on: a row, a column, or the rows of a table. A write touches tags.",
    "invalidate": "A write invalidates each entry that depends on a tag which it touches. The entry is *stale* from then on and is never served.",
    "over-invalidation": "An entry became stale although its bytes would have been the same.",
    "hit, miss": "A hit is served from Redis without any SQL. A miss reads the database and *fills* the entry.",
    "cold, warm": "A cold page has no entry yet, a warm one has. To warm a page is to fill its entry.",
    "journal": "The record in Redis of which tags were written, and when. A read compares an entry with it.",
    "lease": "Opened in the journal before a COMMIT and closed after it. While it is open, entries that depend on its tags are not trusted.",
    "epoch": "The identity of one journal. If Redis loses the journal, a new one has another epoch, and older entries are not trusted.",
    "low-water mark": "Records older than this have been dropped from the journal, so entries older than this are not trusted either.",
    "raced": "A write overtook the read that was filling an entry. The response is read again and not stored.",
    "single flight": "One reader fills an entry while the others wait for it. If it gives no sign of life for the *wait timeout*, another takes over.",
    "early expiration": "A reader refreshes an entry shortly before it expires, so that the others never miss it.",
    "unlocked save": "`save()` of a row that was read without `select_for_update()`. It writes every column.",
    "cursor": "A position in a list, which leads to the next and the previous page (keyset pagination).",
    "schedule": "One order of the steps of several processes. An *actor* is one of these processes.",
    "steps": "The steps of a race, as they were recorded. T1, T2, … are processes. `lookup` and `store` begin and end a fill, `lease` and `close` a COMMIT; "
    "`abandon` and `withdraw` replace the end if there is nothing to store or to close. `is alive` is a sign of life of a slow fill.",
    "linearizable": "Each read and each write can be given one instant within its duration at which it took effect.",
    "round trip": "One message to Redis and its reply. A pipeline or a script is one round trip.",
    "baseline": "The value that a measurement is compared with.",
    "fast path": "It answers hits before Django, with the headers that Django gave to equal requests.",
    "circuit breaker": "After a failure of Redis it lets one request at a time try again, while all others ask the database at once.",
    "load test": "Many virtual users read while a writer changes prices.",
    "mutant": "The code with one line changed. At least one spec has to fail for it. A *sabotage* is a mutant written by hand.",
}
"""The project's own words, as both documents use them."""

DOCUMENTS = (
    Document(
        "SPEC.md",
        "The promises of this project",
        "Every sentence is the name of a spec in `tests/` and links to it. ✓ is promised on this stack, — is not.\n"
        "Promises about the test tools are in [SPEC-TOOLS.md](SPEC-TOOLS.md). `make spec` writes both files from the specs.",
        (
            "invalidation",
            "saves",
            "upserts",
            "scopes",
            "joined",
            "places",
            "intervals",
            "writes",
            "commit",
            "close",
            "contract",
            "cursors",
            "schema",
            "requests",
            "fuzz",
            "admin",
            "cost",
            "latency",
            "scale",
            "hits",
            "fast_path",
            "learning",
            "worker",
            "access_log",
            "asgi",
            "warming",
            "keys",
            "identity",
            "dependencies",
            "kinds",
            "compiler",
            "precision",
            "sql",
            "drivers",
            "messages",
            "statements",
            "races",
            "waiting",
            "slow_fills",
            "journal",
            "verification",
            "other_writers",
            "schedules",
            "histories",
            "faults",
            "outage_table",
            "deploys",
            "outages",
            "slow_database",
            "health",
            "scripts",
            "servers",
            "connections",
            "environment",
            "production",
            "home",
            "browser",
            "seed",
            "import",
            "import_files",
            "mappings",
            "import_again",
            "inspect",
            "setup",
            "safety",
            "checks",
            "engine",
            "drf_views",
            "take_home",
            "operators",
            "comparison",
            "cache_page",
            "metrics",
        ),
    ),
    Document(
        "SPEC-TOOLS.md",
        "The promises of the test tools",
        "Every sentence is the name of a spec in `tests/` and links to it. ✓ is promised on this stack, — is not.\n"
        "Promises about the service and its cache are in [SPEC.md](SPEC.md), with a glossary. `make spec` writes both files from the specs.",
        ("stacks", "instruments", "counting", "failures", "linearizability", "compare", "report", "load", "stress", "proxy", "sabotages", "spec"),
    ),
)

SPELLED = (
    {
        "n plus 1": "N+1",
        "ctrl c": "Ctrl-C",
        "a do block": "a DO block",
        "env is": ".env is",
        "redis py": "redis-py",
        "spec md": "SPEC.md",
        "copy (makes|from|to)": r"COPY \1",
        "explain analyze": "EXPLAIN ANALYZE",
        "100 000": "100,000",
        "a type error": "a TypeError",
        "make (calls|load|run|scale|spec)": r"`make \1`",
        "one line error": "one-line error",
        "over invalidat(ed|es|ion)": r"over-invalidat\1",
        "pg trgm": "pg_trgm",
        "warm up": "warm-up",
        "king county": "King County",
        "(a|an|as|every|one|than|the|what|without) get": r"\1 GET",
        "as view": "as_view()",
        "cache page": "cache_page()",
        "select for update": "select_for_update()",
        "update fields": "update_fields",
        "full clean": "full_clean()",
        "(by|failed) copy": r"\1 COPY",
        "refresh from db": "refresh_from_db()",
        "on commit hook": "on_commit hook",
        "created at": "created_at",
        "many to many": "many-to-many",
        "hooked allowed": "hooked, allowed",
        "paginations filters annotations prefetches": "paginations, filters, annotations, prefetches",
        "info and script load": "INFO and SCRIPT LOAD",
        "run id": "run ID",
        "xfetch": "XFetch",
        "acl": "ACL",
        "check deploy": "`check --deploy`",
        "atomic requests": "ATOMIC_REQUESTS",
        "cache status": "Cache-Status",
        "if none match": "If-None-Match",
        "demo page docs and admin": "demo page, docs and admin",
        "prefers reduced motion": "prefers-reduced-motion",
        "docker": "Docker",
    }
    | {
        word.lower(): word
        for word in (
            "API",
            "ASCII",
            "ASGI",
            "COMMIT",
            "CSV",
            "DRF",
            "Django",
            "ETag",
            "ETags",
            "FLUSHALL",
            "HEAD",
            "Compose",
            "HTML",
            "HTTP",
            "HTTPS",
            "IDs",
            "INFO",
            "JSON",
            "JavaScript",
            "Lua",
            "Markdown",
            "Melbourne",
            "OPTIONS",
            "PgBouncer",
            "PostgreSQL",
            "Python",
            "README",
            "Redis",
            "SELECT",
            "SIGKILL",
            "SIGTERM",
            "SQL",
            "SQLite",
            "TLS",
            "TOML",
            "TTL",
            "TRUNCATE",
            "URL",
            "URLs",
            "UUID",
            "Unicode",
            "Unix",
            "Valkey",
            "WSGI",
        )
    }
    | {"Redis-py": "redis-py"}
)
"""Words as they are in the name of a spec (a regular expression) → as they are spelled. `_s_` in a name is an apostrophe: `the_engine_s_imports`."""

POSSESSIVE = {
    "drivers": "driver's",
    "drfs": "DRF's",
    "djangos": "Django's",
    "nobodys": "nobody's",
    "readers own": "reader's own",
    "engines imports": "engine's imports",
}

AS_SPELLED = [(re.compile(rf"\b{plain}\b"), spelled) for plain, spelled in (POSSESSIVE | SPELLED).items()]


@dataclass(frozen=True)
class Promise:
    """A row: a sentence, where its spec is, why it matters, the reasons of its numbers, and the stacks on which it is promised."""

    sentence: str
    place: str
    why: str = ""
    reasons: tuple[str, ...] = ()
    stacks: frozenset[str] = frozenset(STACKS)
    steps: tuple[str, ...] = ()
    """The lines of a race, as they are below the table."""

    @property
    def full_why(self) -> str:
        """The reason, then each `because`."""
        return " ".join(filter(None, [self.why, *(f"*Because {reason}.*" for reason in self.reasons)]))

    def row(self, notes: dict[str, str], with_why: bool) -> str:
        """The row of a Markdown table. A remark that is one of `notes` is shown as its number."""
        why, marks = self.full_why, ""
        for remark, mark in notes.items():
            if remark in why:
                why, marks = " ".join(why.replace(remark, "").split()), f"{marks} [{mark}](#notes)"
        steps = f" ([steps](#{anchor_of(self.sentence)}))" if self.steps else ""
        cells = [f"[{self.sentence}]({self.place}){marks}{steps}", *([why] if with_why else []), *("✓" if stack in self.stacks else "—" for stack in STACKS)]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass
class Group:
    """The promises under one comment of a chapter."""

    title: str
    promises: list[Promise] = field(default_factory=list)


def sentence_of(name: str) -> str:
    """`test_a_hit_costs_one_round_trip` → "A hit costs one round trip"."""
    words = re.sub(r" s\b", "'s", name.removeprefix("test_").replace("_", " "))
    for plain, spelled in AS_SPELLED:
        words = plain.sub(spelled, words)
    return words if words.startswith("redis-py") else words[0].upper() + words[1:]


def reasons_of(spec: ast.FunctionDef) -> tuple[str, ...]:
    """Every `because="…"` in a spec, and those that it is parametrized with, each once."""
    found = [
        keyword.value.value
        for call in ast.walk(spec)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "because" and isinstance(keyword.value, ast.Constant)
    ]
    for mark in spec.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parametrize" and "because" in (names := ast.literal_eval(mark.args[0])):
            found += [row[names.index("because")] for row in ast.literal_eval(mark.args[1])]
    return tuple(dict.fromkeys(found))


def stacks_of(marks: Iterable[ast.expr]) -> frozenset[str]:
    """The stacks on which a spec with these marks holds: all, unless one is `pytest.mark.only("embedded")`."""
    for mark in marks:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.only":
            return frozenset(map(ast.literal_eval, mark.args))
    return frozenset(STACKS)


def folded(line: str) -> list[str]:
    """A line of steps in the width of GitHub's page. A longer one is folded between two steps."""
    lines = [""]
    for step in line.split(", "):
        if len(lines[-1]) + len(step) > 98 and lines[-1]:
            lines.append("   ")
        lines[-1] = f"{lines[-1].rstrip(',')}, {step}" if lines[-1].strip() else f"{lines[-1]} {step}" if lines[1:] else step
    return [f"{part}," for part in lines[:-1]] + lines[-1:]


def steps_of(name: str, recorded: dict[str, list[str]]) -> tuple[str, ...]:
    """The lines of a race. If a spec has several examples with different steps, each begins with the names of its examples."""
    examples: dict[tuple[str, ...], list[str]] = {}
    for key, lines in recorded.items():
        if key.partition("[")[0] == name:
            examples.setdefault(tuple(lines), []).append(key.partition("[")[2].removesuffix("]"))
    if len(examples) < 2:
        return next(iter(examples), ())
    parts = [("", f"With {' or '.join(names)}:", *lines) for lines, names in examples.items()]
    return tuple(line for part in parts for line in part)[1:]


parsed = lru_cache(maxsize=1)(ast.parse)


def groups_of(source: str, path: str = "", recorded: dict[str, list[str]] | None = None) -> list[Group]:
    """The promises of one chapter, grouped by the comments that divide it. A comment without a promise below it is left out."""
    nodes = parsed(source).body
    inside = {line for node in nodes for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    headings = [(number, line[2:]) for number, line in enumerate(source.splitlines(), 1) if line.startswith("# ") and number not in inside]
    marks = [mark for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" for mark in ast.walk(node.value)]
    groups = [Group("")]
    for node in nodes:
        while headings and headings[0][0] < node.lineno:
            groups.append(Group(headings.pop(0)[1].removesuffix(".")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            why = " ".join((ast.get_docstring(node) or "").split())
            stacks = stacks_of([*node.decorator_list, *marks])
            groups[-1].promises.append(
                Promise(sentence_of(node.name), f"{path}#L{node.lineno}", why, reasons_of(node), stacks, steps_of(node.name, recorded or {}))
            )
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_PROMISED" and isinstance(node.value, ast.Dict):
            for key, why in zip(node.value.keys, node.value.values, strict=True):
                groups[-1].promises.append(Promise(ast.literal_eval(key), f"{path}#L{key.lineno}", ast.literal_eval(why), (), frozenset()))
    return [group for group in groups if group.promises]


def table_of(promises: Sequence[Promise], notes: dict[str, str]) -> Iterator[str]:
    """The lines of a table. It has a column for the reasons only if there are any."""
    with_why = any(_without(notes, promise.full_why) for promise in promises)
    columns = ["promise", *(["why"] if with_why else []), *STACKS]
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join(["---"] * (len(columns) - len(STACKS)) + [":-:"] * len(STACKS)) + " |"
    for promise in promises:
        yield promise.row(notes, with_why)


def _without(notes: Iterable[str], why: str) -> str:
    for remark in notes:
        why = why.replace(remark, "")
    return why.strip()


def notes_of(groups: Iterable[Group]) -> dict[str, str]:
    """Remark → its number, for each remark in brackets that several rows end with. The most frequent one is first."""
    remarks = Counter(match for group in groups for promise in group.promises for match in re.findall(r"\([A-Z][^()]*\.\)$", promise.why))
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    repeated = [remark for remark, times in remarks.most_common() if times > 1]
    return {remark: str(number).translate(digits) for number, remark in enumerate(repeated, 1)}


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Chapter:
    """One file of specs: its title and introduction, from the docstring, and its groups of promises."""

    path: str
    title: str
    introduction: str
    table: str
    """The lines of a table that it has besides its promises, from its constant TABLE."""
    groups: list[Group]

    @classmethod
    def of(cls, path: Path) -> Chapter:
        """Read a chapter from its file."""
        source, name = path.read_text(encoding="utf-8"), f"tests/{path.name}"
        nodes = parsed(source)
        title, _, rest = " ".join((ast.get_docstring(nodes) or "").split()).partition(". ")
        tables = [ast.literal_eval(node.value) for node in nodes.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TABLE"]
        return cls(name, title.removesuffix("."), rest, "".join(tables).strip(), groups_of(source, name, trace.recorded()))

    def text(self, notes: dict[str, str]) -> str:
        """The chapter as Markdown."""
        parts = [f"## [{self.title}]({self.path})", self.introduction, self.table]
        for group in self.groups:
            parts += [f"### {group.title}" if group.title else "", "\n".join(table_of(group.promises, notes))]
            for promise in filter(lambda promise: promise.steps, group.promises):
                parts += [
                    f"{'####' if group.title else '###'} {promise.sentence}",
                    "\n".join(["```text", *itertools.chain(*map(folded, promise.steps)), "```"]),
                ]
        return "\n\n".join(filter(None, parts))


def spec(document: Document) -> str:
    """The whole of a document. Raises SystemExit if a file of specs is in neither document, or a chapter has no file."""
    files = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests").glob("test_*.py")}
    listed = {name for each in DOCUMENTS for name in each.chapters}
    if files.keys() != listed:
        raise SystemExit(f"DOCUMENTS in tests/spec.py and the files tests/test_*.py differ. Add or remove: {', '.join(sorted(files.keys() ^ listed))}.")
    chapters = [Chapter.of(files[name]) for name in document.chapters]
    notes = notes_of(group for chapter in chapters for group in chapter.groups)
    with_glossary = document is DOCUMENTS[0]
    contents = [*(["Glossary"] if with_glossary else []), *(chapter.title for chapter in chapters), *(["Notes"] if notes else [])]
    parts = [
        f"# {document.title}",
        document.head,
        "\n".join(["| stack | servers |", "| --- | --- |", *(f"| {name} | {servers} |" for name, servers in STACKS.items())]),
        "## Contents",
        "\n".join(f"- [{title}](#{anchor_of(title)})" for title in contents),
    ]
    if with_glossary:
        parts += ["## Glossary", "\n".join(["| word | meaning |", "| --- | --- |", *(f"| {word} | {meaning} |" for word, meaning in GLOSSARY.items())])]
    parts += [chapter.text(notes) for chapter in chapters]
    if notes:
        parts += ["## Notes", "\n".join(f"- {mark} {remark.strip('()')}" for remark, mark in notes.items())]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    """Write both documents. With `--check`, print how they differ from the specs and exit with 1 if they do."""
    outdated = []
    for document in DOCUMENTS:
        path, due = ROOT / document.name, spec(document)
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        if arguments != ["--check"]:
            path.write_text(due, encoding="utf-8")
        elif written != due:
            sys.stdout.writelines(difflib.unified_diff(written.splitlines(True), due.splitlines(True), document.name, "the specs"))
            outdated.append(document.name)
    if outdated:
        raise SystemExit(f"Out of date: {', '.join(outdated)}. Run `make spec` and commit the result.")


if __name__ == "__main__":
    main(sys.argv[1:])
