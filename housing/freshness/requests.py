"""The request from which a response is filled: whatever is read from it that the key does not carry keeps the response out of the cache.

A key carries the address with its parameters, and so the host, the language and the time zone. A cached response is the same for everybody who sends that.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, QueryDict
from django.http.request import HttpHeaders

from .dependencies import recorder

JSON = "application/json"

PLAIN = vars(HttpRequest()).keys() | {"environ", "scope", "script_name", "urlconf", "csrf_processing_done"}
"""What a request has before any middleware adds to it, and what is nobody's own."""


def note(what: str) -> None:
    """Say that something was read that may differ from one reader to another."""
    if (recording := recorder()) is not None:
        recording.refuse(f"The view reads {what}, and a cached response is the same for everybody. Take that out of the view, or do not cache it.")


def _is_private(name: str) -> bool:
    """Whether a name in META is a header, or says where the reader is, and the key does not carry it."""
    return name.startswith(("HTTP_", "REMOTE_")) and name not in _keyed()


def _keyed() -> set[str]:
    """The headers from which Django makes the address, and the one that a fill sets itself."""
    keyed = {"HTTP_HOST", "HTTP_ACCEPT"}
    keyed |= {"HTTP_X_FORWARDED_HOST"} if settings.USE_X_FORWARDED_HOST else set()
    keyed |= {"HTTP_X_FORWARDED_PORT"} if settings.USE_X_FORWARDED_PORT else set()
    return keyed | ({settings.SECURE_PROXY_SSL_HEADER[0]} if settings.SECURE_PROXY_SSL_HEADER else set())


class Meta(dict[str, Any]):
    """META, which notes the headers that are looked up."""

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._note(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a header."""
        self._note(name)
        return super().get(name, default)

    @staticmethod
    def _note(name: Any) -> None:
        if _is_private(name):
            note("the request's body" if name in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH") else f"request.META[{name!r}]")  # where DRF looks


class Headers(HttpHeaders):
    """The headers, which note what is looked up; `get()` and `in` look up, too."""

    def __getitem__(self, name: str) -> str:
        if _is_private(f"HTTP_{name.replace('-', '_').upper()}"):
            note(f"the header {name}")
        return super().__getitem__(name)


class Noted(HttpRequest):
    """A request that notes the cookies, a body, and what a middleware added: the user, the session, a tenant."""

    _added: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and (name in self._added or name in ("COOKIES", "body", "POST", "FILES")):
            note(f"request.{name}")
        return super().__getattribute__(name)


@cache
def _noted(theirs: Any) -> type[Noted]:
    return type(theirs.__name__, (Noted, theirs), {})


def parameters(request: HttpRequest) -> QueryDict:
    """The parameters of a request, in the order of their names."""
    ordered = QueryDict(mutable=True)
    for name in sorted(request.GET):
        ordered.setlist(name, request.GET.getlist(name))
    return ordered


def noted(request: HttpRequest) -> HttpRequest:
    """The same request, as a GET of JSON, which notes what is read from it."""
    asked: Any = copy.copy(request)
    added = {name for name in vars(request) if not name.startswith("_") and not hasattr(type(request), name)} - PLAIN
    for name in ("headers", "accepted_types", "accepted_types_by_precedence"):
        vars(asked).pop(name, None)
    asked.method, asked.GET = "GET", parameters(request)
    asked.META = Meta(request.META | {"HTTP_ACCEPT": JSON, "QUERY_STRING": asked.GET.urlencode()})
    asked.headers = Headers(asked.META)
    asked._added = frozenset(added)
    theirs: Any = type(request)
    asked.__class__ = _noted(theirs)
    return cast(HttpRequest, asked)
