"""Requests while the database is unavailable or slow: each gets 503 with `Retry-After`, as JSON or as a page, and one line in the log.

The middleware also bounds the requests that use the database at once, so that some threads stay free for hits. Cached views bound their own reads,
because a hit uses no database. The health checks come first, so that no other middleware can delay or break them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from rest_framework.settings import api_settings

from housing import health
from housing.freshness import Busy, cold_reads
from housing.logs import id_of
from housing.policies import STRICT

logger = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which a client may try again while the database is unavailable."""

JSON, HTML = "application/json", "text/html"

View = TypeVar("View", bound=Callable[..., Any])


def bounds_its_reads(view: View) -> View:
    """Mark a view that uses no database, or bounds its reads itself."""
    vars(view)["bounds_its_reads"] = True
    return view


class Outages:
    """The middleware; see the module."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response, or that of a health check."""
        if request.path_info in health.CHECKS:
            return health.CHECKS[request.path_info](request)
        try:
            return self.get_response(request)
        finally:
            if "_began_to_read" in vars(request):
                cold_reads.leave(vars(request)["_began_to_read"])

    def process_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> HttpResponse | None:
        """Wait a moment until fewer requests use the database. Return 503 if they take long."""
        if not hasattr(view, "bounds_its_reads"):
            try:
                vars(request)["_began_to_read"] = cold_reads.enter()
            except Busy as busy:
                response = unavailable(request, str(busy), str(busy), busy.wait)
                response.headers["Server-Timing"] = 'sql;desc="0 queries";dur=0.00'
                return response
        return None

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Return 503 if the database is unavailable, or did not reply in time, and 400 for a page of the toolbar, which checks none of its parameters."""
        if request.path_info.startswith("/__debug__/"):
            return refusal(request, "The toolbar has no such panel.", 400, f"{type(error).__name__}: {error}")
        return without_a_database(request, error) if isinstance(error, InterfaceError | OperationalError) else None


def without_a_database(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return 503, and log the error of the database."""
    return unavailable(request, "The database is unavailable. Try again later.", f"The database is unavailable: {' '.join(str(error).split())}")


def unavailable(request: HttpRequest, why: str, reason: str, retry_after: int = RETRY_AFTER, error: Exception | None = None) -> HttpResponse:
    """Return 503, and log the reason."""
    response = refusal(request, why, 503, reason, error)
    response.headers["Retry-After"] = str(retry_after)
    return response


def refusal(request: HttpRequest, why: str, status: int, reason: str, error: Exception | None = None) -> HttpResponse:
    """Return a refusal as JSON, or as a page if the client prefers HTML. It is one line in the log, with the reason, which the client is not shown."""
    kinds = [JSON, HTML] if request.path.startswith("/api/") else [HTML, JSON]
    headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Request-ID": id_of(request)}
    if request.get_preferred_type(kinds) == HTML:
        page = render_to_string("housing/refused.html", {"title": HTTPStatus(status).phrase, "why": why})
        response = HttpResponse(page, status=status, headers=headers | {"Content-Security-Policy": STRICT})
    else:
        body = {api_settings.NON_FIELD_ERRORS_KEY: [why]} if status == 400 else {"detail": why}
        response = JsonResponse(body, status=status, headers=headers)
    level = logging.WARNING if status < 500 and error is None else logging.ERROR
    logger.log(level, "%d for %s: %s", status, request.path, reason, exc_info=error, extra={"request": request, "status_code": status})
    response._has_been_logged = True  # type: ignore[attr-defined]  # otherwise Django logs it again
    return response
