"""The fills of this process. One thread reports the slow ones to the journal as alive, so that other readers go on waiting for them.

A quick fill has ended before its first report, so it costs no command. A process that is killed reports nothing, so the wait for it ends
FRESHNESS_WAIT_TIMEOUT after its last report. A fill that never ends is reported, too: the script in Redis bounds how long it is waited for.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from time import monotonic, sleep

from .breaker import Unreachable
from .journal import Miss, journal
from .settings import conf

logger = logging.getLogger(__name__)

PER_TIMEOUT = 4
"""Reports in FRESHNESS_WAIT_TIMEOUT seconds, so that one may be lost and the next be late before others stop waiting."""


@dataclass(eq=False)
class Fill:
    """The fill of an entry after a miss, and when it began."""

    entry: str
    miss: Miss
    began: float


class Fills:
    """The fills that go on in this process. Their thread starts with the first one, and works only while there are some."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all of them and the thread, which do not exist in a forked process."""
        self._going: set[Fill] = set()
        self._begun = threading.Event()
        self._starting = threading.Lock()
        self.thread: threading.Thread | None = None

    def begin(self, entry: str, miss: Miss) -> Fill:
        """Report a fill as alive from now on, until it has to `end`."""
        fill = Fill(entry, miss, monotonic())
        self._going.add(fill)
        if not self._begun.is_set() and conf.WATCHMAN and conf.WAIT_TIMEOUT:
            self._wake()
        return fill

    def end(self, fill: Fill) -> None:
        """Report it no longer."""
        self._going.discard(fill)

    def renew(self) -> None:
        """Report each fill that has taken longer than the time between two reports. Forget those that nobody waits for any longer."""
        for fill in list(self._going):
            if monotonic() - fill.began >= conf.WAIT_TIMEOUT / PER_TIMEOUT and not journal.renew(fill.entry, fill.miss):
                self._going.discard(fill)

    def _wake(self) -> None:
        self._begun.set()
        with self._starting:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="freshness-fills", daemon=True)
                self.thread.start()

    def _run(self) -> None:
        while True:
            self._begun.wait()
            self._begun.clear()  # before it looks, so that no fill that begins meanwhile is missed
            while self._going:
                sleep(conf.WAIT_TIMEOUT / PER_TIMEOUT)
                self._report()

    def _report(self) -> None:
        try:
            self.renew()
        except Unreachable:  # the breaker has logged it, and the next report may arrive
            pass
        except Exception:
            logger.exception("The slow fills of this process could not be reported as alive, so other readers may query the database, too.")


fills = Fills()

os.register_at_fork(after_in_child=fills.forget)
