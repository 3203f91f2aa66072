"""The circuit breaker: after a call to Redis has failed, the next calls fail at once, so a server that is down costs one wait and not one for each request.

It opens with an error, and raises the same error again without a round trip. After FRESHNESS_RETRY seconds one call is let through, the *probe*, while
all others still fail at once. If the server replies, the breaker closes. An open breaker is an unreachable Redis: reads come from the database, and
writes go to the outbox. It never allows a hit.

The pattern is from Nygard, "Release It!", 2007, section 5.2.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from .settings import conf

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """Redis sent no reply, or an error. The message says which server it was, and the error."""

    is_repeated = False
    """Whether the breaker raised it again, without asking the server."""


@dataclass(frozen=True)
class Opened:
    """The server that failed, a function that makes its error again, and when it failed first and last."""

    address: str
    error: Callable[[], Unreachable]
    since: float
    tried: float


class Breaker:
    """One for each process. A forked process begins with a closed one."""

    def __init__(self) -> None:
        self.opened: Opened | None = None
        self._probe = threading.Lock()

    def open(self, address: str, error: Callable[[], Unreachable]) -> Unreachable:
        """Let calls to this server fail at once from now on. Returns the error to raise."""
        now, before, raised = monotonic(), self._opened_for(address), error()
        if not conf.RETRY:
            return raised
        if before is None:
            logger.warning("Redis is not used until it replies, and is tried every %g s: %s", conf.RETRY, raised)
        self.opened = Opened(address, error, before.since if before else now, now)
        return raised

    def close(self) -> None:
        """Let every call through."""
        opened, self.opened = self.opened, None
        if opened:
            logger.info("Redis at %s is used again after %.0f s.", opened.address, monotonic() - opened.since)

    @contextmanager
    def probing(self, address: str) -> Iterator[None]:
        """Let the body be the probe, if one is due. Otherwise raise the error with which the breaker opened, without a round trip."""
        opened = self._opened_for(address)
        if opened is None:
            self.opened = None  # the address is another server's now
            yield
            return
        if monotonic() - opened.tried < conf.RETRY or not self._probe.acquire(blocking=False):
            again = opened.error()
            again.is_repeated = True
            raise again
        try:
            yield
        except Unreachable:
            if self.opened is opened:  # the server replied, with an error that concerns only this call
                self.close()
            raise
        else:
            self.close()
        finally:
            self._probe.release()

    def _opened_for(self, address: str) -> Opened | None:
        opened = self.opened
        return opened if opened and opened.address == address else None
