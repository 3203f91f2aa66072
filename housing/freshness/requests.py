"""The request of a fill. If a view reads something from it that is not part of the key, the response is not stored.

A key includes the host, the URL with its parameters, the language and the time zone. Requests with the same key get the same response.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from typing import Any, cast

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, QueryDict
from django.http.request import HttpHeaders
from django.utils import timezone, translation
from django.utils.http import parse_etags

from .dependencies import recorder

JSON = "application/json"

SAFE = ("GET", "HEAD")

KNOWN = 100
"""How many ETags of a request are compared, because the arguments of a script are limited."""

PLAIN = vars(HttpRequest()).keys() | {"environ", "scope", "script_name", "urlconf", "csrf_processing_done"}
"""The attributes of a request that no middleware has added, and others that are the same for everybody."""


LONGEST = 2000
"""Characters of a URL that are stored with an entry. An operator cannot ask for a longer one again."""


def note(what: str) -> None:
    """Refuse to store the response, because the view has read something that may differ between clients."""
    if (recording := recorder()) is not None:
        recording.refuse(f"The view reads {what}, but a cached response is the same for everybody. Remove it from the view, or do not cache the view.")


def _is_private(name: str) -> bool:
    """Whether a name in META is a header or the client's address, and is not part of the key."""
    return name.startswith(("HTTP_", "REMOTE_")) and name not in _keyed()


def _keyed() -> set[str]:
    """Return the headers that Django builds the URL from, and the one that a fill sets."""
    keyed = {"HTTP_HOST", "HTTP_ACCEPT"}
    keyed |= {"HTTP_X_FORWARDED_HOST"} if settings.USE_X_FORWARDED_HOST else set()
    keyed |= {"HTTP_X_FORWARDED_PORT"} if settings.USE_X_FORWARDED_PORT else set()
    return keyed | ({settings.SECURE_PROXY_SSL_HEADER[0]} if settings.SECURE_PROXY_SSL_HEADER else set())


class Meta(dict[str, Any]):
    """A META that notices lookups of headers."""

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
            note("the request's body" if name in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH") else f"request.META[{name!r}]")  # read by DRF


class Headers(HttpHeaders):
    """Headers that notice lookups, including `get()` and `in`."""

    def __getitem__(self, name: str) -> str:
        if _is_private(f"HTTP_{name.replace('-', '_').upper()}"):
            note(f"the header {name}")
        return super().__getitem__(name)


class Noted(HttpRequest):
    """A request that notices access to cookies, the body and attributes of middleware, such as the user or the session."""

    _added: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and (name in self._added or name in ("COOKIES", "body", "POST", "FILES")):
            note(f"request.{name}")
        return super().__getattribute__(name)


@cache
def _noted(theirs: Any) -> type[Noted]:
    return type(theirs.__name__, (Noted, theirs), {})


def parameters(request: HttpRequest) -> QueryDict:
    """Return the parameters of a request, sorted by name."""
    ordered = QueryDict(mutable=True)
    for name in sorted(request.GET):
        ordered.setlist(name, request.GET.getlist(name))
    return ordered


def etags_of(if_none_match: str | None) -> Collection[str]:
    """Return the ETags that the client has."""
    return [etag.removeprefix("W/") for etag in parse_etags(if_none_match)[:KNOWN]] if if_none_match else ()


def address_of(request: HttpRequest) -> str:
    """Return the URL of a request, its language and its time zone, separated by spaces. The URL is only a path if the request has no valid host."""
    url = request.get_full_path()
    with suppress(KeyError, DisallowedHost):
        url = f"{request.scheme}://{request.get_host()}{url}"
    return f"{url[:LONGEST]} {translation.get_language()} {timezone.get_current_timezone_name()}"


def noted(request: HttpRequest) -> HttpRequest:
    """Return a copy of the request, as a GET of JSON, that notices what is read from it."""
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
