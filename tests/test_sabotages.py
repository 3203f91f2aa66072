"""The specs can fail: each has a line of `housing` that turns it red. `make mutants` tries them all, and many more."""

import ast

import pytest

from tests import equivalent_mutants, sabotages
from tests.sabotages import ROOT, SABOTAGES, Sabotage

SPEC = "def test_it():\n    from housing.limits import LIMIT\n    assert LIMIT == 3\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A tree with one promise, kept, and one spec of it."""
    monkeypatch.setattr(sabotages, "COPIED", ("housing", "tests", "pytest.ini"))
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    (tmp_path / "housing").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "housing" / "limits.py").write_text("LIMIT = 3\nOTHER = 3\n")
    (tmp_path / "tests" / "test_limits.py").write_text(SPEC)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = --disable-plugin-autoload\n")
    return tmp_path


def a_sabotage(old="LIMIT = 3", new="LIMIT = 4", spec="test_limits.py::test_it"):
    return Sabotage("the limit is another", "limits.py", old, new, spec)


def names_of_specs():
    """`test_x.py::test_y` of every spec there is."""
    return {
        f"{chapter.name}::{spec.name}"
        for chapter in (ROOT / "tests").glob("test_*.py")
        for spec in ast.walk(ast.parse(chapter.read_text(encoding="utf-8")))
        if isinstance(spec, ast.FunctionDef)
    }


def test_every_sabotage_fits_the_code_and_names_a_spec_that_is_there():
    """Else the table would rot: what is not found is not tried."""
    specs = names_of_specs()
    texts = {sabotage.file: (ROOT / "housing" / sabotage.file).read_text(encoding="utf-8") for sabotage in SABOTAGES}

    assert [sabotage.what for sabotage in SABOTAGES if texts[sabotage.file].count(sabotage.old) != 1 or sabotage.old == sabotage.new] == []
    assert {sabotage.spec.partition("[")[0] for sabotage in SABOTAGES} - specs == set()
    assert len({sabotage.what for sabotage in SABOTAGES}) == len(SABOTAGES)


def test_every_defence_of_the_journal_has_a_sabotage_of_its_own():
    for defence in ("read_at", "lease", "closed record", "own lease only", "epoch", "quarantine", "low water", "run id", "monotonic instants", "ties"):
        assert any(sabotage.what.startswith(f"{defence}: ") for sabotage in SABOTAGES), defence


def test_a_sabotage_is_noticed_if_its_spec_goes_red(project, capsys):
    assert sabotages.run([a_sabotage()], project) == []
    assert (project / "housing" / "limits.py").read_text() == "LIMIT = 3\nOTHER = 3\n"  # the tree itself is never touched


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (a_sabotage("OTHER = 3", "OTHER = 4"), "test_limits.py::test_it stays green"),
        (a_sabotage("LIMIT = 7"), "its old text stands 0 times in housing/limits.py: bring the table up to date"),
        (a_sabotage("= 3"), "its old text stands 2 times in housing/limits.py: bring the table up to date"),
        (a_sabotage(spec="test_limits.py::test_that"), "test_limits.py::test_that cannot be run: "),
    ],
    ids=["green", "not there", "twice", "no spec"],
)
def test_what_is_not_noticed_is_said(project, sabotage, complaint, capsys):
    [said] = sabotages.run([sabotage], project)
    assert said.startswith(f"the limit is another: {complaint}")


def test_a_spec_that_hangs_is_said(project):
    hanging = a_sabotage(new="import threading; threading.Event().wait()")

    assert sabotages.complaint(hanging, project, patience=1) == "test_limits.py::test_it hung for 1 s"


def test_the_exit_code_says_whether_all_were_noticed(monkeypatch, capsys):
    complaints = []
    monkeypatch.setattr(sabotages, "run", lambda chosen: complaints)

    assert sabotages.main(["ties:"]) == 0
    complaints.append("one")
    assert sabotages.main(["ties:"]) == 1
    assert capsys.readouterr().out == "3 sabotages, 3 noticed.\n3 sabotages, 2 noticed.\n"


def test_words_that_no_sabotage_has_are_an_error(capsys):
    with pytest.raises(SystemExit):
        sabotages.main(["no", "such"])
    assert "no sabotage has “no such” in its description" in capsys.readouterr().err


def test_ctrl_c_leaves_no_copy_behind(project, tmp_path_factory, monkeypatch):
    """It ends what is running, and starts nothing more."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(sabotages.tempfile, "tempdir", str(folder))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sabotages, "as_completed", interrupt)
    monkeypatch.setattr(sabotages, "ROOT", project)
    monkeypatch.setattr(sabotages, "SABOTAGES", [a_sabotage()])
    assert sabotages.main([]) == 130


# Mutants

RESULTS = """
    housing.signals.x_connect__mutmut_2: timeout
    housing.signals.x__model__mutmut_1: survived
"""
DIFF = """# housing.signals.x__model__mutmut_1: survived
--- housing/signals.py
+++ housing/signals.py
-    return cast(type, model)
+    return {line}
"""


def mutmut(line="cast(None, model)", results=RESULTS):
    """What it would say."""
    return lambda verb, *_: results if verb == "results" else DIFF.replace("{line}", line)


def test_a_survivor_with_an_excuse_is_let_go(monkeypatch, capsys):
    monkeypatch.setattr(equivalent_mutants, "EXCUSED", {r"cast\(None, ": "for mypy alone"})

    assert equivalent_mutants.main(mutmut()) == 0
    assert capsys.readouterr().out == "Every mutant is noticed, or excused.\n"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (mutmut("model"), "housing.signals.x__model__mutmut_1: survived: return model"),
        (mutmut(results=RESULTS.replace("survived", "no tests")), "housing.signals.x__model__mutmut_1: no tests: return cast(None, model)"),
        (mutmut(results=""), "cast\\(None, : no mutant needs this excuse"),
    ],
    ids=["no excuse", "not tried", "an excuse that none needs"],
)
def test_a_survivor_without_an_excuse_is_said(monkeypatch, capsys, said, complaint):
    monkeypatch.setattr(equivalent_mutants, "EXCUSED", {r"cast\(None, ": "for mypy alone"})

    assert equivalent_mutants.main(said) == 1
    assert complaint in capsys.readouterr().out.splitlines()


def test_at_most_ten_kinds_of_mutants_are_excused():
    """Each with a reason. A list that grows is a list that nobody reads."""
    assert len(equivalent_mutants.EXCUSED) <= 10
    assert all(equivalent_mutants.EXCUSED.values())


def test_mutmut_itself_is_asked(monkeypatch):
    """Without a command it says what it can do."""
    assert "results" in equivalent_mutants.mutmut("--help")
