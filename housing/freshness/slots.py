"""A bound on the reads of this process that use the database at once. Each of them keeps a thread of the server, and hits need one, too.

While the database is quick, a read beyond the bound waits for its turn. It never waits longer than FRESHNESS_WAIT_TIMEOUT, and not at all while the
database is slow. Then it is refused with 503, so that the other threads stay free.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rest_framework import status
from rest_framework.exceptions import APIException

from .settings import conf

logger = logging.getLogger(__name__)

RETRY_AFTER = 1
"""Seconds after which a client may try again. A read that is stuck ends with the timeout of its statement."""


class Busy(APIException):
    """FRESHNESS_COLD_READS reads wait for the database already. DRF turns this into a response with 503 and `Retry-After`."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "Too many requests are waiting for the database. Try again later."
    default_code = "busy"
    wait = RETRY_AFTER
    """The name under which DRF looks for `Retry-After`."""


class ColdReads:
    """The reads of this process that use the database now."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all reads, which do not exist in a forked process."""
        self._turn = threading.Condition()
        self._begun: list[float] = []
        self._is_slow = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Let the body use the database, after a short wait if others do. Raises Busy if they take long."""
        begun = self.enter()
        try:
            yield
        finally:
            self.leave(begun)

    def enter(self) -> float:
        """Begin a read, which has to `leave` with the returned instant. Raises Busy."""
        with self._turn:
            if not self._turn.wait_for(lambda: len(self._begun) < conf.COLD_READS, timeout=self._patience()):
                logger.debug("Refused with 503: %d reads of this process are using the database, and the oldest takes long.", len(self._begun))
                raise Busy
            self._begun.append(begun := monotonic())
        return begun

    def leave(self, begun: float) -> None:
        """End a read. If it took long, no other read waits until one was quick again."""
        with self._turn:
            self._begun.remove(begun)
            self._is_slow = monotonic() - begun > conf.WAIT_TIMEOUT
            self._turn.notify()

    def _patience(self) -> float:
        """The seconds until the oldest read counts as slow."""
        if self._is_slow or not self._begun:
            return 0
        return float(max(0, self._begun[0] + conf.WAIT_TIMEOUT - monotonic()))


cold_reads = ColdReads()

os.register_at_fork(after_in_child=cold_reads.forget)
