"""The cached view: it stores the bytes of a response with their dependencies."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models.query import RawQuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse
from django.http.response import HttpResponseBase
from django.utils import timezone, translation
from django.utils.http import parse_etags
from rest_framework.exceptions import ValidationError
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny, DjangoModelPermissionsOrAnonReadOnly, IsAuthenticatedOrReadOnly
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from .connection import ours
from .entries import NOT_VERIFIED, CachedResponse, Read, respond
from .fast_path import LESSON, Lesson
from .keys import entry_key
from .metrics import count
from .requests import JSON, SAFE, address_of, etags_of, noted, parameters
from .settings import conf
from .slots import Busy

logger = logging.getLogger(__name__)

READ_BY_EVERYBODY = (AllowAny, IsAuthenticatedOrReadOnly, DjangoModelPermissionsOrAnonReadOnly)
"""Permissions that let everybody read."""

WHO_READS = ("get_authenticators", "perform_authentication", "get_permissions", "check_permissions", "check_object_permissions")
"""Methods with which a view decides who may read."""

HOOKS = ("as_view", "setup", "dispatch", "as_json", "cached", "asked", "_wants_json")
"""Methods that a hit calls. If a view overrides one, it may do something at each request."""

R = TypeVar("R", bound=HttpResponseBase)


class NotCached(Exception):
    """A response that is not cached, because its status is not 200 or it has more than JSON. It is served as it is."""

    def __init__(self, response: HttpResponseBase) -> None:
        super().__init__(f"{response.status_code}")
        self.response = response


class CachedView(GenericAPIView[Any]):
    """A mixin for a generic view or viewset, placed before it. Its GET is cached, and never older than the last committed write.

    A cached response is the same for everybody, so GET needs no authentication. POST, PUT, PATCH and DELETE work as in DRF.
    """

    using: ClassVar[str] = DEFAULT_DB_ALIAS
    """The alias of the database that it reads."""
    skippable: ClassVar[bool] = False
    """Whether a hit may be answered without a call of this view, although it overrides one of `HOOKS`: they only read the request."""
    refused: Exception | None = None
    _is_filling = False

    @classmethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Return the view without ATOMIC_REQUESTS, because a transaction may read a state older than the last commit.

        Raises ImproperlyConfigured if the permissions of the view do not let everybody read, or if it reads raw SQL.
        """
        view: Any = cls(**initkwargs)
        private = [getattr(each, "__name__", repr(each)) for each in view.permission_classes if each not in READ_BY_EVERYBODY]
        private += [f"{each.__name__}.{name}()" for each in cls.__mro__ if each not in (CachedView, APIView) for name in WHO_READS if name in vars(each)]
        if private:
            raise ImproperlyConfigured(
                f"{cls.__name__} is cached, and a cached response is the same for everybody: it cannot have {private[0]}. "
                f"Set permission_classes to {', '.join(each.__name__ for each in READ_BY_EVERYBODY)} or [], or do not cache it."
            )
        if isinstance(view.queryset, RawQuerySet):
            raise ImproperlyConfigured(
                f"{cls.__name__} is cached, and the tables that a {type(view.queryset).__name__} reads are not known. Write its query with Django's models."
            )
        function: Any = transaction.non_atomic_requests(super().as_view(*args, **initkwargs))
        if cls.skippable or not _own_hooks(cls, initkwargs):
            function.skippable = function  # a decorator copies the attribute, but is another function
        return function

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Return the cached bytes before DRF's own work if the client accepts JSON. DRF renders errors and other formats."""
        if request.method in SAFE and not self._is_filling:
            if self._wants_json(request):
                try:
                    response = self.as_json(request)
                    if lesson := dict.get(request.META, LESSON):
                        function = request.resolver_match and request.resolver_match.func
                        lesson.is_skippable = getattr(function, "skippable", None) is function
                    return response
                except NotCached as refused:
                    return refused.response
                except (Busy, ValidationError, Http404) as refused:
                    self.refused = refused
            for method in ("get", "head"):
                if handler := getattr(self, method, None):
                    setattr(self, method, partial(self._negotiated, handler))
        return super().dispatch(request, *args, **kwargs)

    def _wants_json(self, request: HttpRequest) -> bool:
        accept = request.META.get("HTTP_ACCEPT", "*/*")
        if not (accept == JSON or (accept == "*/*" and self.renderer_classes[0].media_type == JSON)) or self.throttle_classes:
            return False
        if self.kwargs and self.kwargs.get(api_settings.FORMAT_SUFFIX_KWARG):
            return False
        named = api_settings.URL_FORMAT_OVERRIDE
        return not (named and request.META.get("QUERY_STRING") and named in request.GET)

    def _negotiated(self, handler: Callable[..., HttpResponseBase], request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """After DRF's negotiation, return the cached bytes, a page that shows them, or another format from the database."""
        if self.refused:
            raise self.refused
        try:
            if request.accepted_renderer.format == "api":
                found = self.cached(request._request, ())
                return described(Response(json.loads(found.body or b"null")), found.status, found.age)
            if request.accepted_media_type == JSON:
                return self.as_json(request._request)
        except NotCached as refused:
            return refused.response
        return bypassing(handler(request, *args, **kwargs), "accept")

    # Hooks of DRF. A GET is not authenticated, and a fill must not depend on its reader.

    def get_authenticators(self) -> list[Any]:
        """Return none for a GET. A fill has those of the view, so that a view that reads the user is noticed."""
        return [] if self._is_read and not self._is_filling else super().get_authenticators()

    def perform_authentication(self, request: Request) -> None:
        """Authenticate, except in a fill."""
        if not self._is_filling:
            super().perform_authentication(request)

    def get_permissions(self) -> Any:
        """Return none for a GET, which everybody may read."""
        return [] if self._is_read else super().get_permissions()

    def get_throttles(self) -> Any:
        """Return none in a fill, because the outer request was counted."""
        return [] if self._is_filling else super().get_throttles()

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Choose JSON in a fill."""
        for renderer in self.get_renderers() if self._is_filling else ():
            if renderer.media_type == JSON:
                return renderer, JSON
        return super().perform_content_negotiation(request, force)

    @property
    def _is_read(self) -> bool:
        request = getattr(self, "request", None)  # a schema is generated without a request
        return request is not None and request.method in SAFE

    # The response

    def as_json(self, request: HttpRequest) -> HttpResponseBase:
        """Return the cached bytes, 304 if the client has them, or 412 if it asks for others."""
        known = dict.get(request.META, "HTTP_IF_NONE_MATCH")  # which the fast path does not notice, because it compares ETags itself
        found = self.cached(request, etags_of(known) if known else ())
        headers = _headers(found.status, found.age) | {"ETag": found.etag}
        wanted = request.META.get("HTTP_IF_MATCH")
        if wanted and found.etag not in parse_etags(wanted) and wanted.strip() != "*":
            return JsonResponse({"detail": "The response has another ETag than those in If-Match."}, status=412, headers=headers)
        return HttpResponseNotModified(headers=headers) if found.body is None else HttpResponse(found.body, content_type=JSON, headers=headers)

    def cached(self, request: HttpRequest, etags: Collection[str]) -> CachedResponse:
        """Return the response from the cache or from the database. Raises what `asked` and its `read` raise."""
        kind, asked, read = self.asked(request)
        lesson: Lesson | None = dict.get(request.META, LESSON)
        ahead = lesson.ahead_of(kind, asked, etags) if lesson else None
        address, is_linked = partial(address_of, request), partial(self.is_linked, request)
        found = respond(partial(entry_key, kind, asked), etags, read, ours(self.using), address, is_linked, ahead.take if ahead else None)
        if lesson:
            lesson.say(kind, asked, self.using, found)
        if conf.METRICS_TOKEN:
            count(found.status)
        return found

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """Return the kind of the entry, the canonical text of the request, and a function that reads the response from the database.

        By default the text is the URL with sorted parameters, the language and the time zone, and the function calls the view.
        """
        address = f"{request.build_absolute_uri(request.path)}?{parameters(request).urlencode()}"
        asked = f"{address} {translation.get_language()} {timezone.get_current_timezone_name()}"
        return f"{type(self).__module__}.{type(self).__qualname__}", asked, lambda: self._read(request)

    def is_linked(self, request: HttpRequest) -> bool:
        """Whether a link leads to this URL, so that there is a limited number of such URLs. By default those without parameters.

        The number of all other entries is limited by FRESHNESS_UNLINKED, because a client can invent parameters.
        """
        return not request.META.get("QUERY_STRING")

    def _read(self, request: HttpRequest) -> bytes:
        """Return the bytes of the view's response. Raises NotCached if it is not a 200 with JSON only."""
        plain, view = noted(request), self._again()
        view.setup(plain, *self.args, **self.kwargs)
        connection = ours(self.using)
        snapshot = nullcontext() if connection.in_transaction else connection.snapshot()
        with snapshot:
            response: Any = view.dispatch(plain, *self.args, **self.kwargs)
            if response.status_code != 200:
                raise NotCached(response)
            if more := _more_than_json(response):
                logger.error("Served, but not stored: The response of %s has %s. A cached response may only have JSON.", type(self).__name__, more)
                raise NotCached(bypassing(response, NOT_VERIFIED))
            return bytes((response.render() if hasattr(response, "render") else response).content)

    def _again(self) -> Any:
        """Return a copy of the view, with the arguments of `as_view`, for a fill."""
        view: Any = copy.copy(self)
        for method in ("get", "head"):
            vars(view).pop(method, None)
        for method, action in (getattr(self, "action_map", None) or {}).items():  # of a viewset
            setattr(view, method, getattr(view, action))
        view._is_filling = True
        return view


def _own_hooks(cls: type, initkwargs: Collection[str]) -> bool:
    """Whether a view has a method that a hit calls, and that is neither the engine's nor a library's."""
    own = [each for each in cls.__mro__ if each is not CachedView and not each.__module__.startswith(("django.", "rest_framework."))]
    return any(name in vars(each) or name in initkwargs for each in own for name in HOOKS)


def _more_than_json(response: Any) -> str | None:
    """Return the first part of a response that is not in its bytes, or None."""
    found = [f"the header {name}" for name in response.headers if name not in ("Content-Type", "Allow", "Vary")]
    found += [f"the cookie {name}" for name in response.cookies]
    kind = response.content_type if isinstance(response, Response) else response.headers.get("Content-Type")
    found += [f"the content type {kind}"] if kind not in (None, JSON) else []
    found += ["a streamed body"] if response.streaming else []
    return found[0] if found else None


def _headers(status: str, age: int | None = None) -> dict[str, str]:
    """Return the headers of the cache. `no-cache` makes browsers revalidate each time."""
    headers = {"Cache-Status": status, "Cache-Control": "no-cache", "Vary": "Accept"}
    if age is not None:
        headers["Age"] = str(age)
    return headers


def bypassing(response: R, why: str) -> R:
    """Add the headers of the cache to a response that is not cached, and count it."""
    status = f"{conf.NAME}; fwd=bypass; detail={why}"
    if conf.METRICS_TOKEN:
        count(status)
    return described(response, status)


def described(response: R, status: str, age: int | None = None) -> R:
    """Add the headers of the cache to a response."""
    for name, value in _headers(status, age).items():
        response.headers[name] = value
    return response
