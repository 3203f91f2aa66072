"""Every spec can fail. Each defence has a sabotage, a wrong line of `housing` for which a spec fails. `make mutants` runs them all, and generated mutants."""

import ast
import subprocess
from importlib import import_module

import pytest

from tests import ROOT
from tests.sabotages import Sabotage, equivalent_mutants
from tests.sabotages import __main__ as sabotages
from tests.sabotages.__main__ import SABOTAGES

SPEC = "def test_it():\n    from housing.limits import LIMIT\n    assert LIMIT == 3\n\ndef test_with_an_error(no_fixture):\n    pass\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A tree with one promise, which is kept, and its spec."""
    monkeypatch.setattr(sabotages, "COPIED", ("housing", "tests", "pytest.ini"))
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    (tmp_path / "housing").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "housing" / "limits.py").write_text("LIMIT = 3\nOTHER = 3\n")
    (tmp_path / "tests" / "test_limits.py").write_text(SPEC)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = --disable-plugin-autoload\n")
    return tmp_path


def a_sabotage(old="LIMIT = 3", new="LIMIT = 4", spec="test_limits.py::test_it"):
    return Sabotage("the limit is wrong", "limits.py", old, new, spec)


def names_of_specs():
    """The name of every spec, as `test_x.py::test_y`."""
    return {
        f"{chapter.name}::{spec.name}"
        for chapter in (ROOT / "tests").glob("test_*.py")
        for spec in ast.walk(ast.parse(chapter.read_text(encoding="utf-8")))
        if isinstance(spec, ast.FunctionDef)
    }


def test_every_sabotage_fits_the_code_and_names_an_existing_spec():
    """A sabotage whose line or spec is gone would otherwise silently test nothing."""
    specs = names_of_specs()
    texts = {sabotage.file: (ROOT / "housing" / sabotage.file).read_text(encoding="utf-8") for sabotage in SABOTAGES}

    assert [sabotage.what for sabotage in SABOTAGES if texts[sabotage.file].count(sabotage.old) != 1 or sabotage.old == sabotage.new] == []
    assert {sabotage.spec.partition("[")[0] for sabotage in SABOTAGES} - specs == set()
    assert len({sabotage.what for sabotage in SABOTAGES}) == len(SABOTAGES)


def test_every_table_of_sabotages_is_run():
    """A new table that is not part of SABOTAGES would silently test nothing."""
    modules = [import_module(f"tests.sabotages.{table.stem}") for table in (ROOT / "tests" / "sabotages").glob("[a-z]*.py")]
    tables = [rows for module in modules for rows in vars(module).values() if isinstance(rows, tuple) and rows and isinstance(rows[0], Sabotage)]

    assert {row for rows in tables for row in rows} == set(SABOTAGES)
    assert len(tables) > 15


def test_every_defence_of_the_journal_has_a_sabotage_of_its_own():
    """A defence without a failing spec could be removed unnoticed."""
    for defence in ("read_at", "lease", "closed record", "own lease only", "epoch", "quarantine", "low water", "run id", "monotonic instants", "ties"):
        assert any(sabotage.what.startswith(f"{defence}: ") for sabotage in SABOTAGES), defence


def test_a_sabotage_is_noticed_if_its_spec_fails(project, capsys):
    """The sabotage runs in a copy, so the tree itself stays unchanged."""
    assert sabotages.run([a_sabotage()], project) == []
    assert (project / "housing" / "limits.py").read_text() == "LIMIT = 3\nOTHER = 3\n"  # the tree itself is never changed


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (a_sabotage("OTHER = 3", "OTHER = 4"), "test_limits.py::test_it still passes"),
        (a_sabotage("LIMIT = 7"), "its old text is 0 times in housing/limits.py instead of once: update tests/sabotages/"),
        (a_sabotage("= 3"), "its old text is 2 times in housing/limits.py instead of once: update tests/sabotages/"),
        (a_sabotage(spec="test_limits.py::test_that"), "test_limits.py::test_that cannot be run: "),
        (a_sabotage("OTHER = 3", "OTHER = 4", "test_limits.py"), "test_limits.py cannot be run: 1 passed, 1 error"),
    ],
    ids=["the spec still passes", "the line is gone", "the line is there twice", "there is no such spec", "an error comes first"],
)
def test_a_sabotage_that_is_not_noticed_is_reported(project, sabotage, complaint, capsys):
    """The message distinguishes a spec that passes, a line that does not fit, and a spec that cannot run."""
    [reported] = sabotages.run([sabotage], project)
    assert reported.startswith(f"the limit is wrong: {complaint}")


def test_a_spec_that_hangs_is_reported(project):
    """A sabotage may cause an endless loop, and the others still have to run."""
    hanging = a_sabotage(new="import threading; threading.Event().wait()")

    assert sabotages.complaint(hanging, project, timeout=1) == "test_limits.py::test_it did not finish within 1 s"


def test_the_exit_code_says_whether_all_were_noticed(monkeypatch, capsys):
    """`make mutants` and CI depend on it."""
    complaints = []
    monkeypatch.setattr(sabotages, "run", lambda chosen: complaints)

    assert sabotages.main(["ties:"]) == 0
    complaints.append("one")
    assert sabotages.main(["ties:"]) == 1
    monkeypatch.setattr(sabotages, "SABOTAGES", [a_sabotage()])
    assert sabotages.main([]) == 1
    assert capsys.readouterr().out == "3 sabotages, 3 noticed.\n3 sabotages, 2 noticed.\n1 sabotage, 0 noticed.\n"


def test_words_that_match_no_sabotage_are_an_error(capsys):
    """A typo would otherwise look like a successful run."""
    with pytest.raises(SystemExit):
        sabotages.main(["no", "such"])
    assert "no sabotage has “no such” in its description or file" in capsys.readouterr().err


def test_each_sabotage_is_in_one_part():
    """Several machines can share the run."""
    parts = [sabotages.part_of(range(10), f"{number}/3") for number in (1, 2, 3)]
    assert sorted(row for part in parts for row in part) == list(range(10))
    assert [len(part) for part in parts] == [4, 3, 3]


@pytest.mark.parametrize("part", ["0/4", "5/4", "4", "a/b"])
def test_an_invalid_part_is_an_error(part, capsys):
    """It would otherwise be an empty part, which has no complaints."""
    with pytest.raises(SystemExit):
        sabotages.main(["--part", part, "ties:"])
    assert f"“{part}” is not a part: write for example 1/4" in capsys.readouterr().err


def test_ctrl_c_leaves_no_copy_behind(project, tmp_path_factory, monkeypatch):
    """Ctrl-C ends the running specs and starts no others."""
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
    """A stand-in for mutmut that prints these results."""
    return lambda verb, *_: {"results": results, "run": ""}.get(verb, DIFF.replace("{line}", line))


def judge(ask, arguments=(), noticed=()):
    """Judge the mutants, where all specs together notice these."""
    return equivalent_mutants.main(ask, arguments, lambda name, _: name in noticed)


def test_an_equivalent_mutant_that_is_listed_is_accepted(monkeypatch, capsys):
    """No spec can notice it, and its row says why."""
    monkeypatch.setattr(equivalent_mutants, "EQUIVALENT", {r"cast\(None, ": "for mypy alone"})

    assert judge(mutmut()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Every mutant is noticed, or listed as equivalent."


def test_the_share_of_noticed_mutants_is_printed_for_each_module(monkeypatch, capsys):
    """A module that no spec reaches would otherwise hide behind the others. Mutants that were not run count neither way."""
    results = RESULTS + "    housing.signals.x_connect__mutmut_3: not checked\n    housing.views.x_of__mutmut_1: killed\n"

    judge(mutmut(results=results))

    lines = [line.split() for line in capsys.readouterr().out.splitlines()[:3]]
    assert lines == [["all", "2", "of", "3", "66.7%"], ["housing.signals", "1", "of", "2", "50.0%"], ["housing.views", "1", "of", "1", "100.0%"]]


def test_a_mutant_that_only_other_specs_notice_counts_as_noticed(capsys):
    """mutmut runs the specs that reach a function in its own process. A command that a spec starts as a process would seem to have no spec."""
    assert judge(mutmut("model"), ["--sample", "2"], {"housing.signals.x__model__mutmut_1"}) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["all", "2", "of", "2", "100.0%"]


@pytest.mark.parametrize(("code", "is_noticed"), [(0, False), (1, True), (2, True)])
def test_all_specs_are_run_for_a_mutant_that_mutmut_did_not_notice(monkeypatch, code, is_noticed):
    """Those that cannot run with mutants are left out, as they are for mutmut."""
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, **how: started.append((command, how)) or subprocess.CompletedProcess(command, code))

    assert equivalent_mutants.is_noticed_by_any("housing.run.x_main__mutmut_1") == is_noticed
    command, how = started[0]
    assert {"tests", "--deselect=tests/test_environment.py::test_no_other_code_reads_a_variable"} <= {*command}
    assert (how["cwd"], how["env"]["MUTANT_UNDER_TEST"]) == ("mutants", "housing.run.x_main__mutmut_1")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("housing.views.x_of__mutmut_1", ["housing.views.x_of__mutmut_1"]),
        ("housing.run.x_main__mutmut_1", ["housing.run.x_main__mutmut_1", "__main__.x_main__mutmut_1"]),
        ("housing.freshness.x_of__mutmut_1", ["housing.freshness.x_of__mutmut_1", "freshness.x_of__mutmut_1"]),
        ("housing.freshness.views.xǁAǁof__mutmut_1", ["housing.freshness.views.xǁAǁof__mutmut_1", "freshness.views.xǁAǁof__mutmut_1"]),
    ],
)
def test_a_mutant_has_the_names_under_which_specs_run_it(name, names):
    """`python -m housing.run` is the module `__main__`, and another project has a copy of the engine. mutmut finds a mutant by the name of its module."""
    assert list(equivalent_mutants.names_of(name)) == names


def test_the_mutants_of_the_code_for_postgresql_are_judged_on_the_real_stack(monkeypatch):
    """The embedded stack does not run this code, so each of its mutants would survive."""
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: started.append(command) or subprocess.CompletedProcess(command, 1))

    for module in ("housing.signals", "housing.freshness.postgresql.begin"):
        results = RESULTS.replace("housing.signals", module)
        assert equivalent_mutants.main(mutmut("model", results), ["--sample", "2", "--stack=real"]) == 0
    assert ["--stack=real" in command for command in started] == [False, True]


def test_a_mutant_is_not_noticed_because_pytest_cannot_run(monkeypatch):
    """Otherwise a wrong option would count as a spec that notices everything."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 4))

    with pytest.raises(subprocess.CalledProcessError):
        equivalent_mutants.is_noticed_by_any("housing.run.x_main__mutmut_1")


def test_a_sample_of_all_mutants_is_run_and_judged(capsys):
    """All of them take hours. The seed draws the same ones each time, and mutmut makes the mutants first if there are none."""
    made, asked = [], []

    def ask(verb, *arguments):
        asked.append((verb, *arguments))
        if verb == "run" and not made:
            made.extend(f"    housing.views.x_of__mutmut_{number}: killed" for number in range(100))
            raise subprocess.CalledProcessError(1, "mutmut")
        return "\n".join(made) if verb == "results" else ""

    assert judge(ask, ["--sample", "20"]) == 0
    [_, names] = [names for verb, *names in asked if verb == "run"]
    assert len(set(names)) == 20
    assert names == equivalent_mutants.drawn(20, 1, ask) != equivalent_mutants.drawn(20, 2, ask)


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (mutmut("model"), "housing.signals.x__model__mutmut_1: survived: return model"),
        (mutmut(results=RESULTS.replace("survived", "no tests")), "housing.signals.x__model__mutmut_1: no tests: return cast(None, model)"),
        (mutmut(results=""), "cast\\(None, : no mutant matches this pattern any more"),
    ],
    ids=["a mutant that is not listed", "a mutant that was not run", "a pattern without a mutant"],
)
def test_a_surviving_mutant_that_is_not_listed_is_reported(monkeypatch, capsys, ask, complaint):
    """It may be a missing promise. A row without a mutant is reported, too."""
    monkeypatch.setattr(equivalent_mutants, "EQUIVALENT", {r"cast\(None, ": "for mypy alone"})

    assert judge(ask) == 1
    assert complaint in capsys.readouterr().out.splitlines()


def test_at_most_ten_kinds_of_equivalent_mutants_are_listed():
    """Each has a reason. A long list would not be reviewed, and could hide a mutant that a spec should notice."""
    assert len(equivalent_mutants.EQUIVALENT) <= 10
    assert all(equivalent_mutants.EQUIVALENT.values())


def test_the_results_come_from_mutmut_itself(monkeypatch):
    """Its help lists the command that this project needs."""
    assert "results" in equivalent_mutants.mutmut("--help")
