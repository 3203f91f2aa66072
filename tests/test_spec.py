"""The documents and the chapters. SPEC.md, README and the series say what the specs say, and each chapter is short enough for one sitting."""

import ast
import re
from collections import Counter
from contextlib import suppress

import pytest

from housing.freshness.settings import SETTINGS
from tests import ROOT, spec

README = (ROOT / "README.md").read_text(encoding="utf-8")


# SPEC.md


def test_spec_md_is_up_to_date(capsys):
    """This fails for a promise that is not written down, and for a written one that no spec keeps any longer."""
    spec.main(["--check"])
    assert capsys.readouterr().out == ""


@pytest.fixture
def two_chapters(tmp_path, monkeypatch):
    """A tree with two chapters, one for each document."""
    (tmp_path / "tests").mkdir()
    for name in ("cost", "tools"):
        (tmp_path / "tests" / f"test_{name}.py").write_text(
            f'"""{name.title()}, and `more` (of it). An introduction."""\n\n\ndef test_a_hit_is_one_redis_command():\n    """Why | not."""\n'
        )
    documents = [spec.Document("SPEC.md", "Promises", "Head.", ("cost",)), spec.Document("SPEC-TOOLS.md", "Tools", "Head.", ("tools",))]
    monkeypatch.setattr(spec, "DOCUMENTS", documents)
    monkeypatch.setattr(spec, "ROOT", tmp_path)
    return tmp_path


def test_an_outdated_spec_md_is_shown_as_a_diff_and_refused(two_chapters, capsys):
    """The diff shows which promise was changed without `make spec`."""
    with pytest.raises(SystemExit, match=r"Out of date: SPEC\.md, SPEC-TOOLS\.md\. Run `make spec`"):
        spec.main(["--check"])
    assert "+| [A hit is one Redis command](tests/test_cost.py#L4) | Why \\| not. | ✓ | ✓ |\n" in capsys.readouterr().out

    spec.main([])
    spec.main(["--check"])
    assert (two_chapters / "SPEC.md").read_text().startswith("# Promises\n")


def test_promises_about_the_tools_are_in_a_file_of_their_own(two_chapters):
    """Most readers only look for the promises of the service."""
    spec.main([])

    product, tools = ((two_chapters / name).read_text() for name in ("SPEC.md", "SPEC-TOOLS.md"))
    assert ("tests/test_cost.py" in product, "tests/test_tools.py" in product) == (True, False)
    assert ("tests/test_cost.py" in tools, "tests/test_tools.py" in tools) == (False, True)


def test_the_contents_lead_to_each_chapter_and_its_heading_to_its_file(two_chapters):
    """A reader gets from a topic to its specs in two clicks."""
    spec.main([])

    lines = (two_chapters / "SPEC.md").read_text().splitlines()
    contents = lines[lines.index("## Contents") + 2 : lines.index("## Glossary") - 1]
    assert contents == ["- [Glossary](#glossary)", "- [Cost, and `more` (of it)](#cost-and-more-of-it)"]
    assert lines[lines.index("## [Cost, and `more` (of it)](tests/test_cost.py)") + 2] == "An introduction."


@pytest.mark.parametrize("document", [document.name for document in spec.DOCUMENTS])
def test_each_row_links_to_the_line_of_its_spec(document):
    """A link to another line would show a reader the wrong spec."""
    links = re.findall(r"^\| \[(.*?)\]\((tests/test_\w+\.py)#L(\d+)\)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    linked = {(path, int(number)): sentence for sentence, path, number in links}

    assert linked == {(path, line): sentence for path in {path for path, _ in linked} for line, sentence in promised_by(path)}
    assert len(linked) > 50


def promised_by(path):
    """The line and the sentence of each spec and each limitation in a chapter."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, spec.sentence_of(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_PROMISED":
            yield from ((key.lineno, key.value) for key in node.value.keys)


def test_every_promise_says_why():
    """A reader who does not know the reason for a promise cannot judge a change to it. A remark in brackets is no reason."""
    chapters = map(spec.Chapter.of, sorted((ROOT / "tests").glob("test_*.py")))
    promises = [promise for chapter in chapters for group in chapter.groups for promise in group.promises]
    without = [promise for promise in promises if not re.sub(r"\([A-Z][^()]*\.\)$", "", promise.full_why)]

    assert not without, "\n".join(["Write a docstring that says why:", *(f"{promise.place} {promise.sentence}" for promise in without)])
    assert len(promises) > 1_000


def test_each_sentence_of_the_series_names_an_existing_spec():
    """docs/series.md says which spec holds each sentence of the series. A renamed spec would otherwise stay in that table."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "series.md").read_text(encoding="utf-8"))
    texts = {name: (ROOT / "tests" / name).read_text(encoding="utf-8") for name, _ in named}

    assert [f"{name}::{sentence}" for name, sentence in named if f"\ndef {sentence}(" not in texts[name]] == []
    assert len(named) > 40


def test_a_chapter_that_is_in_no_document_is_refused(monkeypatch):
    """Otherwise the promises of a new file would be missing from SPEC.md."""
    monkeypatch.setattr(spec, "DOCUMENTS", spec.DOCUMENTS[1:])

    with pytest.raises(SystemExit, match=r"Add or remove: access_log, admin, asgi, .*writes\."):
        spec.main([])


def test_a_chapter_of_one_stack_says_so_in_each_row():
    """pytest applies a mark of the file to each of its specs, and so does SPEC.md."""
    rows = rows_of('pytestmark = [pytest.mark.browser, pytest.mark.only("embedded")]\n\ndef test_it_is_seen():\n    pass\n')

    assert rows[2:] == ["| [It is seen](#L3) | ✓ | — |"]


def rows_of(source):
    """The lines of the tables that a chapter becomes, without their headings."""
    groups = spec.groups_of(source)
    return [line for group in groups for line in spec.table_of(group.promises, spec.notes_of(groups))]


def test_a_promise_shows_its_reasons_and_its_stacks():
    """Every number has a `because`, and SPEC.md shows it."""
    source = """
# A heading without promises

TEXT = '''
# A line of a text
'''

HELPER = 1

# The cost

OTHER = 1
NOT_PROMISED = {"Wealth": "Out of scope."}

@pytest.mark.only("real")
@pytest.mark.parametrize(("count", "because"), [(1, "one is enough"), (2, "two are more")])
@pytest.mark.parametrize("variant", VARIANTS)
@variants
def test_it_counts(count, because, variant):
    with queries.exactly(1, because="it is a promise"), queries.exactly(1, because=because):
        pass
"""

    assert [group.title for group in spec.groups_of(source)] == ["The cost"]
    assert rows_of(source)[2:] == [
        "| [Wealth](#L13) | Out of scope. | — | — |",
        "| [It counts](#L19) | *Because it is a promise.* *Because one is enough.* *Because two are more.* | — | ✓ |",
    ]


def test_a_table_without_reasons_has_no_column_for_them():
    """An empty column only takes space."""
    rows = rows_of("def test_it_is_seen():\n    pass\n")

    assert rows == ["| promise | embedded | real |", "| --- | :-: | :-: |", "| [It is seen](#L1) | ✓ | ✓ |"]


def test_a_remark_that_several_rows_repeat_is_a_note():
    """The same words in twenty rows would hide the reasons."""
    rows = rows_of('def test_a():\n    """(SQLite alone.)"""\n\ndef test_b():\n    """Why. (SQLite alone.)"""\n\ndef test_c():\n    """(Once.)"""\n')

    assert rows[2:] == ["| [A](#L1) [¹](#notes) |  | ✓ | ✓ |", "| [B](#L4) [¹](#notes) | Why. | ✓ | ✓ |", "| [C](#L7) | (Once.) | ✓ | ✓ |"]
    assert spec.notes_of(spec.groups_of('def test_a():\n    """(Once.)"""\n')) == {}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("test_head_returns_the_same_headers_as_get", "HEAD returns the same headers as GET"),
        ("test_the_engine_s_bytes_are_drfs", "The engine's bytes are DRF's"),
        ("test_an_n_plus_1_of_sqlite", "An N+1 of SQLite"),
        ("test_to_get_a_lock", "To get a lock"),
        ("test_redis_py_raises_a_type_error", "redis-py raises a TypeError"),
    ],
)
def test_titles_keep_case_and_apostrophes(name, sentence):
    """A Python name has neither, so the generator knows the words."""
    assert spec.sentence_of(name) == sentence


# README


def test_readme_lists_every_row_that_is_not_promised():
    """A limit that stands only in a test file is found too late. README has one line for each row, with a link to its chapter."""
    section = README.partition("## What is not promised\n")[2].partition("\n## ")[0]
    listed = Counter(re.findall(r"^- .+\(\[(test_\w+\.py)\]", section, re.MULTILINE))

    rows = Counter()
    for chapter in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(chapter.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_PROMISED":
                rows[chapter.name] += len(ast.literal_eval(node.value))

    assert listed == rows
    assert rows.total() > 20


def test_the_spec_that_readme_shows_is_a_spec():
    """A changed spec would otherwise leave an outdated example in README."""
    shown = README.partition("```python\n")[2].partition("```")[0]

    assert f"\n\n{shown}" in (ROOT / "tests" / "test_invalidation.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_file_that_a_page_links_exists(page):
    """A moved file would otherwise leave a broken link in README or in the pages beside it."""
    file = ROOT / page
    linked = set(re.findall(r"\]\(([\w./-]+)[)#]", file.read_text(encoding="utf-8")))

    assert {name for name in linked if not (file.parent / name).exists()} == set()
    assert linked or page != "README.md"


# The chapters


LONGEST = 600
"""The lines of a file that can be read in one sitting."""


def test_a_chapter_or_a_table_of_sabotages_has_at_most_600_lines():
    """A longer one has two topics. Split it, and give each half a name that a reader would look for."""
    files = [*(ROOT / "tests").glob("test_*.py"), *(ROOT / "tests" / "sabotages").glob("*.py"), ROOT / "conftest.py"]
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}

    assert {name: length for name, length in lines.items() if length > LONGEST} == {}
    assert len(lines) > 40


def numbers():
    """Every number of the code: the defaults of the settings, and the constants of the modules."""
    yield from ((f"FRESHNESS_{name}", setting.default) for name, setting in SETTINGS.items() if type(setting.default) in (int, float))
    for path in sorted((ROOT / "housing").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body if "migrations" not in path.parts else ():
            with suppress(AttributeError, ValueError):  # not an assignment, or not a literal
                names, value = [ast.unparse(name) for name in getattr(node.targets[0], "elts", node.targets)], ast.literal_eval(node.value)
                for name, each in zip(names, value if len(names) > 1 else [value], strict=True):
                    if {type(part) for part in (each if type(each) is tuple else [each])} <= {int, float}:
                        yield f"{path.relative_to(ROOT / 'housing').as_posix()} {name}", each


def test_every_number_of_the_code_is_written_down_with_its_reason():
    """A number that is only in the code can be changed by mistake, and every spec that uses the constant would follow it."""
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").partition("## Numbers")[2]
    written = {name: (value, reason) for name, value, reason in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)}

    assert {name: value for name, (value, _) in written.items()} == {name: str(value).strip("()") for name, value in numbers()}
    assert all(reason.endswith(".") for _, reason in written.values())
    assert len(written) > 30


def imported_by(path):
    """The full name of everything that a file imports, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_spec_imports_conftest_or_another_chapter():
    """Code that several chapters share has a file of its own in `tests/fixtures/`, so a reader knows where to look."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported_by(path)
        if re.match(r"conftest\b|(tests\.)?test_\w+", name)
    }

    assert wrong == set()
