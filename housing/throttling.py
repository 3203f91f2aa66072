"""A limit of requests for each client, if DJANGO_API_THROTTLE has one. They are counted in Redis, as numbers, so that nobody can put a pickle there."""

from __future__ import annotations

from time import time
from typing import Any

from django.core.cache import cache
from django_redis.exceptions import ConnectionInterrupted
from redis import RedisError
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle


class Throttle(SimpleRateThrottle):
    """Counts the requests of an address in each minute, hour or day. Without Redis there is no limit."""

    scope = "api"
    duration: int
    num_requests: int

    def allow_request(self, request: Request, view: Any) -> bool:
        """Whether the client may continue."""
        key = f"throttle:{self.get_ident(request)}:{time() // self.duration:.0f}"
        try:
            cache.add(key, 0, timeout=self.duration)
            return bool(cache.incr(key) <= self.num_requests)
        except (ConnectionInterrupted, RedisError, ValueError):  # evicted between the two
            return True

    def wait(self) -> float:
        """Return the seconds until the next minute, hour or day."""
        return float(self.duration - time() % self.duration)
