"""Writes SPEC.md from the specs themselves: `python -m tests.spec`; with `--check`, fails where SPEC.md says something else.

A chapter is a file, a sentence is the name of a spec, its why is the docstring, and its reasons are each `because`. What is not promised
stands in a chapter as `NOT_PROMISED = {sentence: why}`. Promises only, never measurements: the same bytes on every run.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.stacks import STACKS

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = (
    "setup",
    "checks",
    "engine",
    "contract",
    "cost",
    "hits",
    "keys",
    "invalidation",
    "saves",
    "writes",
    "commit",
    "dependencies",
    "kinds",
    "compiler",
    "sql",
    "statements",
    "precision",
    "races",
    "waiting",
    "journal",
    "schedules",
    "faults",
    "scripts",
    "servers",
    "histories",
    "take_home",
    "drf_views",
    "latency",
    "scale",
    "load",
    "report",
    "home",
    "browser",
    "data",
    "stacks",
    "instruments",
    "sabotages",
)
SPELLED = {
    word.lower(): word
    for word in (
        "Redis",
        "PostgreSQL",
        "SIGKILL",
        "FLUSHALL",
        "TTL",
        "WSGI",
        "ASGI",
        "ETag",
        "ETags",
        "SQL",
        "HTTP",
        "JSON",
        "HEAD",
        "OPTIONS",
        "CSV",
        "TOML",
        "SELECT",
        "COMMIT",
        "Unicode",
        "Django",
        "URL",
        "DRF",
        "README",
    )
} | {
    "n plus 1": "N+1",
    "ctrl c": "Ctrl-C",
    "copy makes": "COPY makes",
    "a do block": "a DO block",
    "env is": ".env is",
    "redis py": "redis-py",
    "a commit": "a COMMIT",
    "a get": "a GET",
    "without get": "without GET",
    "arguments of as view": "arguments of as_view()",
    "lease and commit": "lease and COMMIT",
    "SELECT for update": "select_for_update()",
    "atomic requests": "ATOMIC_REQUESTS",
    "by copy": "by COPY",
    "failed copy": "failed COPY",
    "djangos": "Django's",
    "drivers": "driver's",
    "refresh from db": "refresh_from_db()",
    "on COMMIT hook": "on_commit hook",
    "created at": "created_at",
    "many to many": "many-to-many",
    "over invalidates": "over-invalidates",
    "hooked allowed": "hooked, allowed",
    "paginations filters annotations prefetches": "paginations, filters, annotations, prefetches",
    "commit and close": "COMMIT and close",
    "select and store": "SELECT and store",
    "info and script load": "INFO and SCRIPT LOAD",
    "asks for info": "asks for INFO",
    "run id": "run ID",
    "xfetch": "XFetch",
    "acl": "ACL",
    "check deploy": "check --deploy",
}

HEAD = """# What is promised

Written by `make spec` from the specs in `tests/`, each of which is one of these sentences. ✓ promised on this stack, — not promised.

| stack | servers |
| --- | --- |
{stacks}
"""


@dataclass(frozen=True)
class Promise:
    """A row: a sentence, why it matters, the reasons of its numbers, and the stacks on which it is made."""

    sentence: str
    why: str
    reasons: tuple[str, ...]
    stacks: frozenset[str]

    def row(self) -> str:
        """The row of a Markdown table."""
        why = " ".join(filter(None, [self.why, *(f"*Because {reason}.*" for reason in self.reasons)]))
        cells = [self.sentence, why, *("✓" if stack in self.stacks else "—" for stack in STACKS)]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sentence_of(name: str) -> str:
    """`test_a_hit_costs_one_round_trip` → "A hit costs one round trip"."""
    words = name.removeprefix("test_").replace("_", " ")
    for plain, spelled in SPELLED.items():
        words = re.sub(rf"\b{plain}\b", spelled, words)
    return words[0].upper() + words[1:]


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


def rows_of(source: str) -> Iterator[str]:
    """The rows of one chapter, under the comments that divide it."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.Assign)]
    headings = [(number, line.removeprefix("# ")) for number, line in enumerate(source.splitlines(), 1) if line.startswith("# ")]
    marks = [mark for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" for mark in ast.walk(node.value)]
    for node in nodes:
        while headings and headings[0][0] < node.lineno:
            yield f"| **{headings.pop(0)[1].removesuffix('.')}** |" + " |" * (1 + len(STACKS))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            why = " ".join((ast.get_docstring(node) or "").split())
            yield Promise(sentence_of(node.name), why, reasons_of(node), stacks_of([*node.decorator_list, *marks])).row()
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_PROMISED":
            for sentence, why in ast.literal_eval(node.value).items():
                yield Promise(sentence, why, (), frozenset()).row()


def chapter(path: Path) -> str:
    """One chapter, from its file."""
    source = path.read_text(encoding="utf-8")
    title, _, rest = " ".join((ast.get_docstring(ast.parse(source)) or "").split()).partition(". ")
    columns = ["promise", "why", *STACKS]
    table = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |", *rows_of(source)]
    return "\n\n".join(filter(None, [f"## {title.removesuffix('.')}", rest, "\n".join(table)])) + "\n"


def spec() -> str:
    """The whole of SPEC.md. Raises SystemExit where a chapter is missing from the order in which they are read."""
    files = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests").glob("test_*.py")}
    if files.keys() != set(CHAPTERS):
        raise SystemExit(f"Say in tests/spec.py where it is read: {', '.join(sorted(files.keys() ^ set(CHAPTERS)))}.")
    stacks = "\n".join(f"| {name} | {servers} |" for name, servers in STACKS.items())
    return "\n".join([HEAD.format(stacks=stacks), *(chapter(files[name]) for name in CHAPTERS)])


def main(arguments: list[str]) -> None:
    """Write SPEC.md, or with `--check` say how it differs and exit 1."""
    path = ROOT / "SPEC.md"
    written, due = path.read_text(encoding="utf-8") if path.exists() else "", spec()
    if arguments == ["--check"]:
        if written != due:
            sys.stdout.writelines(difflib.unified_diff(written.splitlines(True), due.splitlines(True), "SPEC.md", "the specs"))
            raise SystemExit("SPEC.md does not say what the specs say. Run `make spec` and commit it.")
    else:
        path.write_text(due, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
