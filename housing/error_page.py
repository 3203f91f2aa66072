"""Django's page about an error in debug, without the passwords of the servers, the secret key and what somebody has typed to log in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from django.conf import settings
from django.http import HttpRequest
from django.utils.html import escape
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from housing.environment import text_of

IN_URL = re.compile(r"://[^:@/\s]*:([^@\s]+)@")


class Filter(SafeExceptionReporterFilter):
    """Hides the parameters of a login in debug, too."""

    def is_active(self, request: HttpRequest | None) -> bool:
        """Whether it hides them."""
        return True


class Reporter(ExceptionReporter):
    """Replaces each secret in the whole page, because a local variable or an error may contain one."""

    def get_traceback_html(self) -> SafeString:
        """Return the page."""
        return SafeString(hidden(super().get_traceback_html()))

    def get_traceback_text(self) -> SafeString:
        """Return the page for a client that does not accept HTML."""
        return SafeString(hidden(super().get_traceback_text()))


def hidden(text: str) -> str:
    """Return a text without the secrets."""
    for secret in sorted(set(secrets()), key=len, reverse=True):
        for form in {secret, unquote(secret), escape(secret), escape(unquote(secret)), escape(repr(secret)[1:-1])}:
            text = text.replace(form, "********************")
    return text


def secrets() -> Iterator[str]:
    """Yield the passwords in the settings, the secret key and the token of the metrics."""
    found: list[Any] = [database.get("PASSWORD") for database in settings.DATABASES.values()]
    found += [settings.SECRET_KEY, settings.FRESHNESS_METRICS_TOKEN]
    found += [password for name in ("DATABASE_URL", "REDIS_URL") for password in IN_URL.findall(text_of(name))]
    yield from (str(secret) for secret in found if secret)
