"""A cached view: the bytes of a response, stored with what they depend on."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified, QueryDict
from django.http.response import HttpResponseBase
from django.utils import timezone, translation
from django.utils.http import parse_etags
from rest_framework.exceptions import ValidationError
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from .connection import ours
from .entries import Answer, Read, answer
from .keys import entry_key
from .settings import conf

JSON = "application/json"
KNOWN = 100
"""How many ETags of a reader are looked at: a script takes so many arguments and no more."""

R = TypeVar("R", bound=HttpResponseBase)


class NotCached(Exception):
    """A response that is not cached, because it is no 200: it goes to this reader as it is."""

    def __init__(self, response: HttpResponseBase) -> None:
        super().__init__(f"{response.status_code}")
        self.response = response


class CachedView(GenericAPIView[Any]):
    """Mix it into a generic view of DRF's, before the view: its GET is cached, and never older than the last committed write.

    Everybody gets the same bytes, so the view may have no permissions, and nobody is authenticated.
    """

    authentication_classes = ()
    using: ClassVar[str] = DEFAULT_DB_ALIAS
    """The database that it reads."""
    refused: Exception | None = None
    _is_filling = False

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """DRF's, outside of ATOMIC_REQUESTS: what a transaction reads may be older than what was written meanwhile.

        Raises ImproperlyConfigured for a view whose response is not the same for everybody.
        """
        view: Any = cls(**initkwargs)
        private = [getattr(each, "__name__", repr(each)) for each in (*view.permission_classes, *view.authentication_classes) if each is not AllowAny]
        private += [name for name in ("get_permissions", "get_authenticators") if getattr(cls, name) is not getattr(APIView, name)]
        if private:
            raise ImproperlyConfigured(
                f"{cls.__name__} is cached, and a cached response is the same for everybody: it cannot have {private[0]}. "
                "Set permission_classes = [AllowAny] and leave authentication_classes out, or do not cache it."
            )
        if not isinstance(view.queryset, QuerySet | None):
            raise ImproperlyConfigured(
                f"{cls.__name__} is cached, and the tables that a {type(view.queryset).__name__} reads are not known. Write its query with Django's models."
            )
        return transaction.non_atomic_requests(super().as_view(**initkwargs))

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The cached bytes before DRF wakes, where nothing is to be negotiated; an error is left to DRF to explain."""
        if request.method in ("GET", "HEAD") and not self._is_filling and self._wants_json(request):
            try:
                return self.as_json(request)
            except NotCached as refused:
                return refused.response
            except (ValidationError, Http404) as refused:
                self.refused = refused
        return super().dispatch(request, *args, **kwargs)

    @staticmethod
    def _wants_json(request: HttpRequest) -> bool:
        if request.META.get("HTTP_ACCEPT", "*/*") not in ("*/*", JSON):
            return False
        named = api_settings.URL_FORMAT_OVERRIDE
        return not (named and request.META.get("QUERY_STRING") and named in request.GET)

    def get(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The same bytes after DRF's negotiation; a page around them for a browser; another format from the database."""
        if self.refused:
            raise self.refused
        if self._is_filling:
            return self._uncached(request, *args, **kwargs)
        try:
            if request.accepted_renderer.format == "api":
                found = self.cached(request._request, ())
                return described(Response(json.loads(found.body or b"null")), found.status)
            if request.accepted_media_type == JSON:
                return self.as_json(request._request)
        except NotCached as refused:
            return refused.response
        return described(self._uncached(request, *args, **kwargs), f"{conf.NAME}; fwd=bypass; detail=accept")

    def _uncached(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = super().get(request, *args, **kwargs)  # type: ignore[misc]  # of the view that this is mixed into
        return response

    def as_json(self, request: HttpRequest) -> HttpResponseBase:
        """The cached bytes, or 304 for a reader who has them."""
        known = request.META.get("HTTP_IF_NONE_MATCH")
        found = self.cached(request, [etag.removeprefix("W/") for etag in parse_etags(known)[:KNOWN]] if known else ())
        headers = _headers(found.status) | {"ETag": found.etag}
        return HttpResponseNotModified(headers=headers) if found.body is None else HttpResponse(found.body, content_type=JSON, headers=headers)

    def cached(self, request: HttpRequest, etags: Collection[str]) -> Answer:
        """The response to this request, from the cache or from the database. Raises what `asked` and its reading raise."""
        kind, asked, read = self.asked(request)
        return answer(partial(entry_key, kind, asked), etags, read, ours(self.using))

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """Which view, what is asked of it in one canonical text, and how that is read from the database.

        Unless a view says otherwise: the address with its parameters in order, and what the view itself answers.
        """
        parameters = QueryDict(mutable=True)
        for name in sorted(request.GET):
            parameters.setlist(name, request.GET.getlist(name))
        asked = f"{request.build_absolute_uri(request.path)}?{parameters.urlencode()}"
        return f"{type(self).__module__}.{type(self).__qualname__}", asked, lambda: self._read(request)

    def _read(self, request: HttpRequest) -> bytes:
        """The bytes of the view's own answer, whatever this reader's language, time zone and taste. Raises NotCached for anything but a 200."""
        plain = copy.copy(request)
        plain.method, plain.META = "GET", request.META | {"HTTP_ACCEPT": JSON}
        view = type(self)()
        view.setup(plain, *self.args, **self.kwargs)
        view._is_filling = True
        connection = ours(self.using)
        snapshot = nullcontext() if connection.in_transaction else connection.snapshot()
        with translation.override(settings.LANGUAGE_CODE), timezone.override(None), snapshot:
            response: Any = view.dispatch(plain, *self.args, **self.kwargs)
            if response.status_code != 200:
                raise NotCached(response)
            return bytes((response.render() if hasattr(response, "render") else response).content)


def _headers(status: str) -> dict[str, str]:
    """A browser must ask each time: only so is the promise kept to the screen."""
    return {"Cache-Status": status, "Cache-Control": "no-cache", "Vary": "Accept"}


def described(response: R, status: str) -> R:
    """The same response with the headers of the cache."""
    for name, value in _headers(status).items():
        response.headers[name] = value
    return response
