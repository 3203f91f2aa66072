"""Requests that no other code has answered: 400 if a value cannot be used, and 503 after any other error, in the client's format and with a line in the log.

`urls.py` lets Django call these views in place of its own error pages. So no request gets 500, whatever it contains.
"""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest, DisallowedHost, SuspiciousOperation, TooManyFieldsSent
from django.db import DataError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.multipartparser import MultiPartParserError

from housing.outages import refusal, unavailable, without_a_database

EXPECTED = (BadRequest, SuspiciousOperation, MultiPartParserError)
"""Errors with which Django refuses a request, in words for its log."""

OF_A_VALUE = (ValueError, ArithmeticError, DataError)
"""Errors of a value that the client has sent, and that no form has refused. A form should have, so each is logged with the calls that led to it."""

TOO_MANY = f"There are more than {settings.DATA_UPLOAD_MAX_NUMBER_FIELDS} parameters."


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return 400 for a request that Django refuses, or the response to any other error."""
    if isinstance(exception, TooManyFieldsSent):
        return refusal(request, TOO_MANY, 400, TOO_MANY)
    if isinstance(exception, DisallowedHost):
        return refusal(request, "This service is not reached under this name.", 400, str(exception))
    if isinstance(exception, EXPECTED):
        return refusal(request, "This request cannot be understood.", 400, f"{type(exception).__name__}: {exception}")
    if isinstance(exception, OF_A_VALUE):
        return refusal(request, "This request has a value that cannot be used.", 400, "A value of the request cannot be used.", exception)
    if isinstance(exception, InterfaceError | OperationalError):
        return without_a_database(request, exception)
    return unavailable(request, "The service could not respond to this request. Try again later.", "An unexpected error.", error=exception)


def error(request: HttpRequest) -> HttpResponse:
    """Return the response to the error that is being handled."""
    return bad_request(request, sys.exc_info()[1])  # type: ignore[arg-type]  # Django calls this view while it handles one


def locked_out(request: HttpRequest, response: HttpResponse, credentials: Any) -> HttpResponse:
    """Return 429 to somebody who has failed to log in too often."""
    minutes = int(settings.AXES_COOLOFF_TIME.total_seconds() / 60)
    refused = refusal(request, f"Too many failed logins. Try again in {minutes} minutes.", 429, "Too many failed logins.")
    refused.headers["Retry-After"] = str(minutes * 60)
    return refused
