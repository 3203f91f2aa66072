"""Sessions of the admin. A cookie that cannot be a key of a session is ignored, because PostgreSQL raises an error for the character NUL."""

from __future__ import annotations

from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest


class Sessions(SessionMiddleware):
    """Django's middleware. It accepts only keys of letters and digits, which is how Django makes them."""

    def process_request(self, request: HttpRequest) -> None:
        """Give the request its session."""
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        request.session = self.SessionStore(key if key.isascii() and key.isalnum() else None)
