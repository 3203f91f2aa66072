"""The checker of histories. It accepts only the histories of a linearizable register, except for late writes within their bound.

Concurrent operations have no single order. Their responses are correct if the history is linearizable: each read and write can have one instant,
between its beginning and its end, at which it took effect. A late write may be missing in reads for a bounded time (Δ) after its end.
"""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exploration.linearizability import Operation, violation

LINEARIZABLE = {
    "a read after a write": """
        T1  |-write 1-|
        T2              |-read 1-|
    """,
    "a read during a write, before it took effect": """
        T1  |---write 1---|
        T2   |-read 0-|
    """,
    "a read during a write, after it took effect": """
        T1  |---write 1---|
        T2   |-read 1-|
    """,
    "a read that sees a write begin after it": """
        T1     |-write 1-|
        T2  |-read 1-------|
    """,
    "old, then new, during one write": """
        T1  |-----------write 1-----------|
        T2    |-read 0-|
        T3               |-read 1-|
    """,
    "two writes at once, the first of which is seen last": """
        T1  |--write 1--|
        T2   |--write 2--|
        T3                 |-read 1-|
    """,
    "two writes at once, both seen while they run": """
        T1  |---------write 1----------|
        T2  |---------write 2----------|
        T3    |-read 2-|  |-read 1-|
        T4                               |-read 1-|
    """,
    "a value that is written again": """
        T1  |-write 1-| |-write 0-|
        T2                          |-read 0-|
    """,
    "a write at the instant at which a read ends": """
        T1           |-write 1-|
        T2  |-read 1-|
    """,
    "a killed write that never happened": """
        T1  |-write 1->
        T2              |-read 0-| |-read 0-|
    """,
    "a killed write that happened": """
        T1  |-write 1->
        T2              |-read 1-| |-read 1-|
    """,
    "a killed write that happened late": """
        T1  |-write 1->
        T2              |-write 2-| |-read 2-| |-read 1-|
    """,
    "a killed read": """
        T1  |-write 1-|
        T2              |-read 0->
    """,
    "a write that comes before the one at whose end it begins": """
        T1  |-write 1-|
        T2            |-write 2-|
        T3                        |-read 1-|
    """,
    "a value that two clients write at once, seen again after another one": """
        T1  |-write 1-|
        T2    |--------------------write 1--------------------|
        T3              |-write 2-| |-read 2-|
        T4                                     |-read 1-|
    """,
}

NOT_LINEARIZABLE = {
    "a stale read": """
        T1  |-write 1-|
        T2              |-read 0-|
    """,
    "a stale read after a write of the same client": """
        T1  |-write 1-| |-read 0-|
    """,
    "new, then old, to two readers during one write": """
        T1  |-----------write 1-----------|
        T2    |-read 1-|
        T3               |-read 0-|
    """,
    "a value that nobody wrote": """
        T1  |-write 1-|
        T2   |-read 2-|
    """,
    "a value from the future": """
        T1             |-write 1-|
        T2  |-read 1-|
    """,
    "two writes at once, which two readers see in two orders": """
        T1  |---------write 1----------|
        T2  |---------write 2----------|
        T3    |-read 1-|  |-read 2-|
        T4    |-read 2-|  |-read 1-|
    """,
    "a lost write": """
        T1  |-write 1-| |-write 2-|
        T2                          |-read 1-|
    """,
    "a killed write that shows, and disappears": """
        T1  |-write 1->
        T2              |-read 1-| |-read 0-|
    """,
    "a killed write that happened twice": """
        T1  |-write 1->
        T2              |-read 1-| |-write 2-| |-read 1-|
    """,
    "a killed write that is seen before it began": """
        T1             |-write 1->
        T2  |-read 1-|
    """,
}


WITHIN_THE_BOUND = {
    "a late write that a read misses": """
        Δ                  |---------|
        T1  |-late write 1-|
        T2                   |-read 0-|
    """,
    "a read that begins the bound after a late write": """
        Δ                  |---------|
        T1  |-late write 1-|
        T2                           |-read 0-|
    """,
    "a late write that one reader misses after another has seen it": """
        Δ                  |--------------------|
        T1  |-late write 1-|
        T2                   |-read 1-|
        T3                              |-read 0-|
    """,
    "a late write, seen and missed while it takes place": """
        Δ   |---------|
        T1  |--------late write 1--------|
        T2    |-read 1-|
        T3               |-read 0-|
    """,
    "two late writes, both of which a read misses": """
        Δ   |------------------------------------|
        T1  |-late write 1-| |-late write 2-|
        T2                                    |-read 0-| |-read 1-|
    """,
    "a late write that is missed although a later write of another client is seen during it": """
        Δ   |---------------------|
        T1  |-write 1-|
        T2              |-late write 2-|
        T3                               |-read 1-|
    """,
    "a late write during another one, which was seen before it": """
        Δ   |---------------------------|
        T1  |-----write 1-----|
        T2    |-late write 2-|
        T3                      |-read 1-|
        T4                         |-read 2-|
    """,
    "a late write that is missed, after a write that ended later than both others": """
        Δ   |--------------------------------------------|
        T1  |---------------write 1---------------|
        T2    |-write 2-|
        T3                |-late write 3-|
        T4                                          |-read 2-|
    """,
    "a write that is not late and ends when a read begins, which may come before it": """
        Δ   |--------------------|
        T1  |------write 1------|
        T2  |-late write 2-|
        T3                      |-read 0-|
    """,
    "a killed late write that happened": """
        Δ   |--------------------|
        T1  |-late write 1->
        T2                   |-read 1-| |-read 0-|
    """,
}

BEYOND_THE_BOUND = {
    "a read that begins later than the bound after a late write": """
        Δ                  |---------|
        T1  |-late write 1-|
        T2                             |-read 0-|
    """,
    "a write that is not late, missed while a late one may be missed": """
        Δ   |------------------------------|
        T1  |-write 1-|
        T2              |-late write 2-|
        T3                               |-read 0-|
    """,
    "a write that is not late, missed by a read that reaches back exactly to its end": """
        Δ             |--------------------|
        T1  |-write 1-|
        T2              |-late write 2-|
        T3                                 |-read 0-|
    """,
    "a late write that is missed after a write that began later": """
        Δ   |--------------------------------------|
        T1  |-late write 1-|
        T2                   |-write 2-|
        T3                               |-read 1-|
    """,
    "new, then old, during a write before a late one": """
        Δ   |------|
        T1  |-----------write 1-----------|
        T2    |-read 1-|
        T3               |-read 0-|
        T4                                  |-late write 2-|
    """,
    "new, then old, longer than the bound after a late write": """
        Δ                  |---|
        T1  |-late write 1-|
        T2                         |-----------write 2-----------|
        T3                           |-read 2-|
        T4                                      |-read 1-|
    """,
    "a write that is missed after a late write began during it": """
        Δ   |---------------------------|
        T1  |-----write 1-----|
        T2    |-late write 2-|
        T3                      |-read 0-|
    """,
    "a late write from the future": """
        Δ   |------------------------|
        T1            |-late write 1-|
        T2  |-read 1-|
    """,
    "a value that nobody wrote": """
        Δ   |--------------------------|
        T1  |-late write 1-|
        T2                   |-read 2-|
    """,
}


def parsed(history):
    """The operations of a drawn history. It has a line per process and a column per instant. A ">" marks an end that is not known."""
    for line in history.split("\n"):
        for found in re.finditer(r"\|-*(late )?(read|write) (\d)-*([|>])", line):
            late, kind, value, end = found.groups()
            yield Operation(line.split()[0], kind, int(value), found.start(), math.inf if end == ">" else found.end() - 1, late is not None)


def drawn_bound(history):
    """The length of the line Δ."""
    return len(re.search(r"Δ +\|(-+)\|", history)[1]) + 1


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_a_linearizable_history_is_accepted(history):
    """Otherwise the spec of the concurrent clients would fail for no reason."""
    assert violation([*parsed(history)], initial=0) is None


@pytest.mark.parametrize("history", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_a_history_that_is_not_linearizable_is_rejected(history):
    """Otherwise the spec of the concurrent clients could pass with a stale response."""
    assert violation([*parsed(history)], initial=0)


@pytest.mark.parametrize("history", WITHIN_THE_BOUND.values(), ids=WITHIN_THE_BOUND)
def test_a_history_whose_reads_miss_late_writes_within_the_bound_is_accepted(history):
    """A read begins at most Δ after the end of each write that it misses. Without the bound the history is rejected."""
    assert violation([*parsed(history)], initial=0, bound=drawn_bound(history)) is None
    assert violation([*parsed(history)], initial=0)


@pytest.mark.parametrize("history", BEYOND_THE_BOUND.values(), ids=BEYOND_THE_BOUND)
def test_a_history_beyond_the_bound_or_with_another_write_missing_is_rejected(history):
    """The bound is for late writes alone."""
    assert violation([*parsed(history)], initial=0, bound=drawn_bound(history))


@pytest.mark.parametrize("history", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_without_late_writes_the_bound_changes_nothing(history):
    """A read reaches back only if a late write explains it."""
    assert violation([*parsed(history)], initial=0, bound=1_000)


def test_the_report_of_a_violation_has_no_needless_line():
    """A history may have 100,000 operations, and a few of them explain the violation."""
    history = """
        T1   |-write 1-|             |-write 2-|   |-write 3->
        T10   |-read 0-| |-read 1-|              |-read 1-|  |-read 2-|
        T3       |-read 1-|            |-read 2-|
    """
    assert violation([*parsed(history)], initial=0) == "\n".join(
        [
            "No order of these operations explains all reads. The value was 0 before them. Seconds count from the first line:",
            "  T1     0.000000 –  10.000000 write 1",
            "  T1    24.000000 –  34.000000 write 2",
            "  T10   36.000000 –  45.000000 read 1",
        ]
    )


def test_the_report_of_a_violation_marks_an_unknown_outcome():
    """A killed write has no end, and may not have happened: "or never"."""
    report = violation([*parsed(NOT_LINEARIZABLE["a killed write that shows, and disappears"])], initial=0)
    assert "  T1    0.000000 –            write 1, or never\n" in report


def test_the_report_of_a_violation_shows_how_far_a_read_reaches_back():
    """It reaches no further than the beginning of the last write before it that is not late."""
    history = """
        Δ   |------------------------------|
        T1  |-write 1-|
        T2              |-late write 2-|
        T3                               |-read 0-|
    """
    report = violation([*parsed(history)], initial=0, bound=drawn_bound(history))
    assert "  T2   12.000000 –  27.000000 write 2, late\n" not in report
    assert report.endswith("  T3   29.000000 –  38.000000 read 0, as of 0.000000 or later")


@pytest.mark.parametrize(("facts", "message"), [(("delete", 1, 0, 1), "not 'delete'"), (("read", 1, 1, 0), "from one monotonic clock")], ids=["kind", "clock"])
def test_an_impossible_operation_is_refused(facts, message):
    """The check of a history with such an operation would mean nothing."""
    with pytest.raises(ValueError, match=message):
        Operation("T1", *facts)


def is_explained(value, history, precedes):
    """The same check by trying every order."""
    first = [operation for operation in history if not any(precedes(other, operation) for other in history)]
    return all(operation.ended == math.inf for operation in history) or any(
        is_explained(value if operation.kind == "read" else operation.value, [other for other in history if other is not operation], precedes)
        for operation in first
        if operation.kind == "write" or operation.value == value
    )


def order(history, bound):
    """Whether one operation of a history has to come before another. A read near a late write has to come after every other write that ended before it."""
    late = [operation for operation in history if operation.late]
    others = [operation for operation in history if operation.kind == "write" and not operation.late]

    def earliest(one):
        if one.kind == "read" and any(write.began <= one.ended and one.began - write.ended <= bound for write in late):
            return max([one.began - bound, *(write.began for write in others if write.ended < one.began)])
        return one.began

    return lambda one, other: one.ended < (other.began if one in others else earliest(other))


@st.composite
def operations(draw):
    """One operation among few instants and values, so that many overlap and some values are equal."""
    kind, value, began = draw(st.sampled_from(["write", "read"])), draw(st.integers(0, 3)), draw(st.integers(0, 8))
    ended = began + draw(st.sampled_from([0, 1, 2, 3, 5, *([math.inf] * 2 if kind == "write" else [])]))
    return Operation("T1", kind, value, began, ended, late=kind == "write" and draw(st.booleans()))


@given(history=st.lists(operations(), max_size=6), bound=st.integers(0, 4))
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_the_check_agrees_with_trying_every_order(history, bound):
    """Its shortcuts change no result."""
    assert (violation(history, initial=0, bound=bound) is None) == is_explained(0, history, order(history, bound))
