"""Copies of the responses that this process has served from the cache. A hit needs only their ETag from Redis, and not their bytes again.

The journal decides at each hit whether the entry is fresh, as without a copy. An ETag is the hash of its bytes, so the copy has the bytes of the entry.
"""

from __future__ import annotations

from .journal import Hit
from .recent import Recent
from .settings import conf

OVERHEAD = 1000
"""Bytes that a copy takes beside its body."""


def size_of(hit: Hit) -> int:
    """Return the bytes that a copy takes."""
    return len(hit.body or b"") + OVERHEAD


copies: Recent[str, Hit] = Recent(lambda: conf.COPIES / 2, size_of)
"""By the key of their entry. A copy may be outdated."""
