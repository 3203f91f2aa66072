"""Check whether a history of reads and writes is linearizable. Copy this file into any project; it needs only Python.

A register is linearizable if each operation can have one instant between its beginning and its end, so that in the order of these instants
each read sees the last write before it (Herlihy and Wing, 1990). Many registers are linearizable if each of them is, so check them one by one.

    violation([Operation("T1", "write", 5, 0.0, 0.1), Operation("T2", "read", 4, 0.2, 0.3)], initial=4)

A *late* write may be missing in a read that begins at most `bound` after the write ended. Such a read may show the state at an earlier instant, as in
Δ-atomicity (Golab, Li and Shah, "Analyzing consistency properties for fun and profit", PODC 2011). All others are checked as before: a read reaches
back only if a late write was going on or ended within the bound before it, and it still comes after each write that is not late and ended before it.

The search is Wing and Gong's (1993), made just-in-time and with memoization as in Lowe, "Testing for linearizability" (2017). Three properties of
registers keep it short. A read can take effect as soon as its value is there. An open write need only take effect now if it ends now, if an open read
waits for its value, or if a read that reaches back has to come after it. A write that no read has seen can have been overwritten at once by the last
write that overlapped it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Operation:
    """A read or a write of a register by a client. `kind` is "read" or "write". `began` and `ended` are instants of one monotonic clock.

    If it is not known whether a write happened, because its process was killed, `ended` is infinite: it took effect at some time, or never.
    A late write may be missing in reads for a bounded time after its end.
    """

    who: str
    kind: str
    value: Hashable
    began: float
    ended: float = math.inf
    late: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("read", "write"):
            raise ValueError(f"An operation is a read or a write, not {self.kind!r}.")
        if not self.began <= self.ended:
            raise ValueError(f"{self.who} cannot have begun at {self.began} and ended at {self.ended}: take both from one monotonic clock.")


@dataclass(frozen=True)
class Reaching(Operation):
    """A read that may miss late writes: `began` is the earliest instant of the state that it may show, and `asked` that of its beginning."""

    asked: float = 0.0


def violation(history: Sequence[Operation], initial: Hashable, bound: float = 0.0) -> str | None:
    """None if this history of one register is linearizable, with late writes within `bound`. Otherwise a report with the fewest operations that show why not.

    `initial` is the register's value before the history. Operations may be in any order. If one ends at the instant another begins, they overlap.
    """
    reaching = reaching_back(history, bound)
    if (impossible := _impossible(reaching, initial)) is None:
        return None
    known = [operation for operation in reaching if (operation.began if operation.kind == "write" else operation.ended) <= impossible.ended]
    operations = sorted(_shortest(sorted(known, key=_beginning), initial), key=_beginning)
    start = operations[0].began
    width = max(len(operation.who) for operation in operations)
    lines = [_line(operation, start, width) for operation in operations]
    return "\n".join([f"No order of these operations explains all reads. The value was {initial!r} before them. Seconds count from the first line:", *lines])


def reaching_back(history: Sequence[Operation], bound: float) -> list[Operation]:
    """The operations in the same order. A read that may miss late writes is Reaching: at most `bound`, and not before another write that had ended."""
    late = sorted((operation.began, operation.ended) for operation in history if operation.late)
    began, newest_end = [start for start, _ in late], [*accumulate((end for _, end in late), max)]
    others = sorted((operation.ended, operation.began) for operation in history if operation.kind == "write" and not operation.late)
    ends, newest_beginning = [end for end, _ in others], [*accumulate((start for _, start in others), max, initial=-math.inf)]

    def reach(read: Operation) -> Operation:
        before = bisect_right(began, read.ended)
        if read.kind == "write" or not before or newest_end[before - 1] + bound < read.began:
            return read
        earliest = max(read.began - bound, newest_beginning[bisect_left(ends, read.began)])
        return Reaching(read.who, "read", read.value, earliest, read.ended, asked=read.began)

    return list(map(reach, history))


def _beginning(operation: Operation) -> float:
    return operation.began


def _line(operation: Operation, start: float, width: int) -> str:
    asked = operation.asked if isinstance(operation, Reaching) else operation.began
    line = f"  {operation.who:{width}}  {asked - start:10.6f} – "
    line += f"{'':10} " if operation.ended == math.inf else f"{operation.ended - start:10.6f} "
    line += f"{operation.kind} {operation.value!r}{', late' if operation.late else ''}{', or never' if operation.ended == math.inf else ''}"
    return f"{line}, as of {operation.began - start:.6f} or later" if asked > operation.began else line


def _shortest(history: list[Operation], initial: Hashable) -> list[Operation]:
    """A part of an impossible history that is impossible, too, and from which no operation can be left out.

    A write stays as long as a read of its value stays; otherwise the read would be impossible for the wrong reason.
    """
    size = len(history)
    while size:
        before, at = len(history), 0
        while at < len(history):
            rest = history[:at] + history[at + size :]
            seen = {operation.value for operation in rest if operation.kind == "read"}
            needed = [operation for operation in history[at : at + size] if operation.kind == "write" and operation.value in seen]
            rest[at:at] = needed
            if len(rest) < len(history) and _impossible(rest, initial):
                history, at = rest, at + len(needed)
            else:
                at += size
        size = size // 2 if size > 1 or len(history) == before else 1
    return history


def _impossible(history: Sequence[Operation], initial: Hashable) -> Operation | None:
    """The operation whose end no order explains, or None. The earliest such end is found."""
    search = _Search(initial, _reads_after(history))
    for ends, number in _events(history):
        operation = history[number]
        if not ends:
            search.begin(number, operation)
        elif not search.end(number, operation):
            return operation
    return None


def _reads_after(history: Sequence[Operation]) -> dict[int, set[int]]:
    """The writes that some reads have to come after although they reach back behind their ends, with these reads."""
    ends = sorted((write.ended, number) for number, write in enumerate(history) if write.kind == "write" and not write.late)
    after = defaultdict(set)
    for number, read in enumerate(history):
        if isinstance(read, Reaching):
            for _, write in ends[bisect_left(ends, (read.began, 0)) : bisect_left(ends, (read.asked, 0))]:
                after[write].add(number)
    return after


def _events(history: Sequence[Operation]) -> Iterator[tuple[bool, int]]:
    """Beginnings and ends in order of time. At the same instant beginnings come first, so that the two operations overlap."""
    events = [(operation.began, False, number) for number, operation in enumerate(history)]
    events += [(operation.ended, True, number) for number, operation in enumerate(history) if operation.ended < math.inf]
    return ((ends, number) for _, ends, number in sorted(events))


class _Search:
    """All possible states: the register's value, the open operations that have taken effect, and the instant of the last write.

    If two states differ only in this instant, the later one allows everything that the earlier one allows.
    """

    def __init__(self, initial: Hashable, after: dict[int, set[int]]) -> None:
        self.after = after
        self.awaited: dict[int, Hashable] = {}
        """The open writes of `after`, with their values."""
        self.possible: dict[tuple[Hashable, frozenset[int]], float] = {(initial, frozenset()): -math.inf}
        self.open: dict[str, dict[Hashable, set[int]]] = {"read": defaultdict(set), "write": defaultdict(set)}  # by value

    def begin(self, number: int, operation: Operation) -> None:
        """Add an operation. A read takes effect at once if its value is there."""
        self.open[operation.kind][operation.value].add(number)
        if number in self.after:
            self.awaited[number] = operation.value
        if operation.kind == "read":
            self.possible = {(value, done | {number} if value == operation.value else done): written_at for (value, done), written_at in self.possible.items()}

    def end(self, number: int, operation: Operation) -> bool:
        """Whether the operation can have taken effect by now."""
        todo, self.possible = list(self.possible.items()), {}
        explored: set[tuple[Hashable, frozenset[int]]] = set()
        while todo:
            (value, done), written_at = todo.pop()
            overwritten = operation.kind == "write" and operation.began <= written_at
            if number in done or overwritten:
                # If it comes just before the last write, the reads that have to come after it must see that one.
                too_early = set() if number in done else self.after.get(number, set()) - self.open["read"].get(value, set())
                rest = value, done - {number} - too_early
                self.possible[rest] = max(written_at, self.possible.get(rest, -math.inf))
            if number not in done:
                for write, written in self._next_writes(number, operation, done):
                    after = written, (done - self.after.get(write, set())) | {write} | self.open["read"].get(written, set())
                    if after not in explored:
                        explored.add(after)
                        todo.append((after, operation.ended))
        self._forget(number, operation)
        return bool(self.possible)

    def _next_writes(self, number: int, operation: Operation, done: frozenset[int]) -> Iterator[tuple[int, Hashable]]:
        """The open writes that may have to take effect before `operation` ends: those that an open read waits for, and itself."""
        for value, reads in list(self.open["read"].items()):
            if not reads <= done:
                yield from ((write, value) for write in self.open["write"].get(value, set()) - done - {number})
        yield from ((write, value) for write, value in self.awaited.items() if write != number and write not in done)
        if operation.kind == "write":
            yield number, operation.value

    def _forget(self, number: int, operation: Operation) -> None:
        self.awaited.pop(number, None)
        of_kind = self.open[operation.kind]
        of_kind[operation.value].discard(number)
        if not of_kind[operation.value]:
            del of_kind[operation.value]
