"""Copies of the responses that this process has served from the cache. A hit needs only their ETag from Redis, and not their bytes again.

The journal decides at each hit whether the entry is fresh, as without a copy. An ETag is the hash of its bytes, so the copy has the bytes of the entry.
"""

from __future__ import annotations

from .journal import Hit
from .settings import conf

OVERHEAD = 1000
"""Bytes that a copy takes beside its body."""


class Copies:
    """The copies by the key of their entry. When the newer half of them is full, the older one is forgotten."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all copies."""
        self.newer: dict[str, Hit] = {}
        self.older: dict[str, Hit] = {}
        self._bytes = 0

    def get(self, key: str) -> Hit | None:
        """Return the copy of an entry, which may be outdated. One from the older half becomes one of the newer."""
        copy = self.newer.get(key)
        if copy is None and (copy := self.older.get(key)) is not None:
            self.keep(key, copy)
        return copy

    def keep(self, key: str, hit: Hit) -> None:
        """Keep a hit that has a body."""
        size = len(hit.body or b"") + OVERHEAD
        if self._bytes + size > conf.COPIES / 2:
            self.newer, self.older, self._bytes = {}, self.newer, 0
        if size <= conf.COPIES / 2:
            self.newer[key] = hit
            self._bytes += size


copies = Copies()
