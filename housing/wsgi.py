"""The service behind any WSGI server: `gunicorn housing.wsgi`, which serves it as `worker.py` says. `runserver` serves this application, too."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import django
from django.core.exceptions import BadRequest
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.utils.http import parse_header_parameters

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ASCII_WITH_MORE = re.compile("utf-8|ascii|iso8859-|cp125")
"""The charsets that a client may use. Other codecs of Python, such as `hex` and `utf-7`, decode no text, or decode ASCII differently."""

READABLE = ("REQUEST_METHOD", "PATH_INFO", "SERVER_NAME", "SERVER_PORT", "HTTP_ACCEPT", "HTTP_X_REQUEST_ID", "wsgi.input", "wsgi.url_scheme")
"""The parts of a request from which a refusal is made if Django cannot read the whole request."""


class Application(WSGIHandler):
    """Django's handler. A request that it cannot read, which no middleware sees, is refused with 400."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:  # type: ignore[override]  # the stubs have no list
        """Return the response to a request."""
        try:
            if "charset" in environ.get("CONTENT_TYPE", "").lower():
                check_charset(environ["CONTENT_TYPE"])
            return super().__call__(environ, start_response)
        except Exception as error:  # noqa: BLE001  # any value of a header may be wrong, and none may be a 500
            from housing.refusals import bad_request  # its modules need Django's settings

            response = bad_request(WSGIRequest({name: environ[name] for name in READABLE if name in environ}), error)
            start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
            return [response.content]


class Service:
    """The application of a server: the fast path of the cache, before Django's handler."""

    def __init__(self) -> None:
        from housing.freshness import FastPath  # Django's settings are loaded now
        from housing.proxies import settle
        from housing.views import SERVER_TIMING

        self.settle = settle
        self.application = FastPath(Application(), {"Server-Timing": lambda seconds: SERVER_TIMING.format(0, "queries", 0, seconds * 1000)})

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Return the response to a request."""
        self.settle(environ)
        return self.application(environ, start_response)


def check_charset(content_type: str) -> None:
    """Raise BadRequest if Python knows the charset, but cannot read parameters with it, or if its name is not ASCII, which Python 3.15 deprecates.

    Django ignores a charset that Python does not know.
    """
    charset: Any = parse_header_parameters(content_type)[1].get("charset") or "utf-8"
    with suppress(LookupError):
        if not charset.isascii() or not ASCII_WITH_MORE.match(codecs.lookup(charset).name):
            raise BadRequest(f"The charset {charset} is not supported. Use UTF-8.")


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "housing.settings")
django.setup(set_prefix=False)
application = Service()
