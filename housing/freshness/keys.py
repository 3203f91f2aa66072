"""Under which key an answer is remembered."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache as once

import django
import rest_framework
from django.core.cache import cache
from django.utils.crypto import salted_hmac

LONG = 200
"""Beyond so many characters of parameters a key carries their SHA-256 instead, which no parameters can be: they have names."""


@once
def fingerprint() -> str:
    """Of all that gives the bytes their shape and the entries their tags, so that a deploy never serves the shape before it.

    Keyed with SECRET_KEY, with which the links in the bytes are signed.
    """
    from housing import filters, models, queries, serializers, views

    from .journal import SCRIPT

    shape = [SCRIPT, *(inspect.getsource(module) for module in (models, queries, filters, serializers, views))]
    return salted_hmac("housing.freshness.keys", "\n".join([django.__version__, rest_framework.VERSION, *shape]), algorithm="sha256").hexdigest()[:16]


def entry_key(kind: str, asked: str) -> str:
    """The key of one answer: its kind ("list", "detail") and, in one canonical text, what was asked."""
    if len(asked) > LONG:
        asked = hashlib.sha256(asked.encode()).hexdigest()
    return cache.make_key(f"{kind}:{fingerprint()}:{asked}")
