"""Requests that come through a proxy. Only a trusted one may say who the client is, and how it was reached.

FORWARDED_ALLOW_IPS has the trusted addresses, which gunicorn uses, too. From any other address the `X-Forwarded-*` headers are ignored. Django's own settings
read those that are left: SECURE_PROXY_SSL_HEADER the scheme, and USE_X_FORWARDED_HOST the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT", "HTTP_X_FORWARDED_PROTO")
"""The headers, as WSGI has them."""

SETTLED = "housing.settled"
"""The mark of a request whose headers have been read. No client can send it."""


class TrustedProxies:
    """The middleware; see the module."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Take the client's address from a trusted proxy, or forget what an untrusted one says."""
        settle(request.META)
        return self.get_response(request)


def settle(given: dict[str, Any]) -> None:
    """Take the client's address from a trusted proxy, or forget what an untrusted one says. The second call for a request changes nothing.

    `wsgi.py` calls it before Django. Otherwise each address of a client would make another request for the fast path of the cache.
    """
    if SETTLED in given:
        return
    given[SETTLED], peer = True, given.get("REMOTE_ADDR", "")
    if not is_trusted(peer, tuple(settings.TRUSTED_PROXIES)):
        for name in FORWARDED:
            given.pop(name, None)
    elif "HTTP_X_FORWARDED_FOR" in given:
        given["REMOTE_ADDR"] = client(peer, given["HTTP_X_FORWARDED_FOR"], tuple(settings.TRUSTED_PROXIES))


@lru_cache(maxsize=1024)
def is_trusted(address: str, proxies: tuple[str, ...]) -> bool:
    """Whether this address is a trusted proxy's. A Unix socket has no address, and whoever may open it is trusted, as by gunicorn."""
    if not address or "*" in proxies:
        return True
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found in ip_network(proxy) for proxy in proxies)


def client(peer: str, forwarded: str, proxies: tuple[str, ...]) -> str:
    """Return the last address that no trusted proxy has. Everything before it may be the client's invention."""
    for address in reversed([part.strip() for part in forwarded.split(",")]):
        try:
            ip_address(address)
        except ValueError:
            break
        peer = address
        if not is_trusted(address, proxies):
            break
    return peer
