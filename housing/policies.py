"""The Content-Security-Policy of every page: a browser loads only files of this service, and neither inline scripts nor inline styles."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware

STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

IN_DEBUG = STRICT.replace("script-src 'self'; style-src 'self'", "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'")
"""The toolbar and Django's page about an error have inline styles and scripts."""


class Policies(XFrameOptionsMiddleware):
    """Django's middleware against frames, which also sends the policy of the page. Django itself has policies from version 6 on."""

    def get_xframe_options_value(self, request: HttpRequest, response: HttpResponse) -> str:
        """Return the value of X-Frame-Options, and add the policy to a page. Another method would be another call in each hit."""
        if response.headers.get("Content-Type", "").startswith("text/html") and "Content-Security-Policy" not in response.headers:
            response.headers["Content-Security-Policy"] = IN_DEBUG if settings.DEBUG else STRICT
        return "DENY"
