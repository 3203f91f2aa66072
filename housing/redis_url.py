"""REDIS_URL as the settings of a Django cache: one server over TCP, TLS or a Unix socket, or the primary that Sentinel names.

Everything is checked here, because redis-py ignores a part that it does not understand, or raises an error for it at every request. No message shows a value,
because a misplaced character can turn any part into the password.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

SERVER = "[USER:PASSWORD@]HOST[:PORT][/DB]"
SENTINELS = "[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DB]"
FORMS = {
    "redis": f"redis://{SERVER}",
    "rediss": f"rediss://{SERVER}[?ssl_ca_certs=FILE]",
    "unix": "unix://[USER:PASSWORD@]/PATH[?db=DB]",
    "redis+sentinel": f"redis+sentinel://{SENTINELS}[?sentinel_password=PASSWORD]",
    "rediss+sentinel": f"rediss+sentinel://{SENTINELS}[?sentinel_password=PASSWORD&ssl_ca_certs=FILE]",
    "fakeredis": "fakeredis://HOST:PORT/DB",
}
"""Scheme → the form of its URLs."""

SERVER_PORT, SENTINEL_PORT = 6379, 26379
ENCODED = "percent-encoded, such as %40 for @"
AT_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
"""Option of a URL → option of a connection to a sentinel. The user and the password before the hosts are those of the servers."""


def redis_cache(url: str, timeout: float) -> dict[str, Any]:
    """Return LOCATION and OPTIONS of the cache at this URL, whose connections wait at most `timeout` seconds. Raises ImproperlyConfigured in one line."""
    scheme = _scheme(url)
    parts = _parts(url, scheme)
    options: dict[str, Any] = {"SOCKET_CONNECT_TIMEOUT": timeout, "SOCKET_TIMEOUT": timeout, "CONNECTION_POOL_KWARGS": {}}
    if scheme.endswith("+sentinel"):
        return _sentinel(parts, scheme, options)
    if scheme == "fakeredis" and not parts.netloc:  # in this process
        from fakeredis import FakeRedisConnection

        options["CONNECTION_POOL_KWARGS"]["connection_class"] = FakeRedisConnection
        return {"LOCATION": "redis://in-process:6379/0", "OPTIONS": options}
    if scheme == "unix":
        _require(parts.path and not _hosts(parts), scheme, "has no path, or a host before it")
    else:
        several = len(_addresses(parts, scheme, SERVER_PORT)) > 1
        _require(not several, "redis+sentinel", "has several hosts without `sentinel`, and a primary and its replicas cannot be told apart")
        _database(parts.path.removeprefix("/"), scheme)
    _keywords(parts.query, scheme)
    return {"LOCATION": url.replace("fakeredis://", "redis://", 1), "OPTIONS": options}


def _scheme(url: str) -> str:
    match = re.match(r"([a-z0-9+.-]+)://", url)
    scheme = match[1] if match else ""
    if "cluster" in scheme:
        raise ImproperlyConfigured(
            "REDIS_URL leads to a cluster, in which the journal and the entries would be on several nodes. "
            f"Use a single server, {FORMS['redis']}, or Sentinel, {FORMS['redis+sentinel']}."
        )
    if scheme not in FORMS:
        raise ImproperlyConfigured(f"REDIS_URL does not begin with a supported scheme. Use one of {', '.join(f'{name}://' for name in FORMS)}.")
    return scheme


def _require(holds: object, scheme: str, what: str) -> None:
    if not holds:
        raise _refusal(scheme, what)


def _refusal(scheme: str, what: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"REDIS_URL {what}. Use {FORMS[scheme]}.")


def _parts(url: str, scheme: str) -> SplitResult:
    try:
        if scheme.endswith("+sentinel"):  # Python 3.14 refuses an IPv6 address that is not the first of several hosts
            head, slashes, rest = url.partition("//")
            netloc = re.split("[/?#]", rest, maxsplit=1)[0]
            parts = urlsplit(head + slashes + rest.removeprefix(netloc))._replace(netloc=netloc)
        else:
            parts = urlsplit(url)
    except ValueError:  # brackets that are not around an IPv6 address
        parts = SplitResult(scheme, "", "", "", "invalid")
    login, rest = parts.netloc.rpartition("@")[0], parts.path + parts.query
    misplaced = parts.fragment or "@" in login + parts.query or "," in login + rest or ("@" in parts.path and scheme != "unix")  # django-redis splits at commas
    _require(not misplaced, scheme, f"contains a character that must be {ENCODED}")
    return parts


def _hosts(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _addresses(parts: SplitResult, scheme: str, default: int) -> list[tuple[str, int]]:
    """The hosts with their ports, at least one."""
    found = []
    for text in _hosts(parts).split(","):
        try:
            address = urlsplit(f"//{text}")
            port = default if address.port is None else address.port
        except ValueError:
            port = 0
        _require(port, scheme, f"has an invalid port: it is a number from 1 to 65535, and special characters of a password must be {ENCODED}")
        _require(address.hostname, scheme, "has no host, or an empty one in its list")
        found.append((str(address.hostname), port))
    return found


def _database(text: str, scheme: str) -> int:
    _require(re.fullmatch("[0-9]*", text), scheme, "has an invalid database: it is a number")
    return int(text or 0)


def _keywords(query: str, scheme: str) -> dict[str, Any]:
    """The options of a query as keywords of a pool and its connections. redis-py itself says which it accepts."""
    connection = UnixDomainSocketConnection if scheme == "unix" else SSLConnection if scheme.startswith("rediss") else Connection
    with suppress(TypeError, ValueError):  # the refusal is raised outside, because a traceback would show this error with the value, too
        keywords: dict[str, Any] = parse_url(f"redis://?{query}")  # type: ignore[no-untyped-call]  # redis-py has no types here
        ConnectionPool(connection, **keywords).make_connection()  # does not connect
        return keywords
    names = ", ".join(dict(parse_qsl(query)))
    raise _refusal(scheme, f"has an option that redis-py does not accept here, or with an invalid value: {names}")


def _sentinel(parts: SplitResult, scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    """The settings of django-redis for a primary that Sentinel names. Replicas lag behind, so nothing connects to them."""
    sentinels = _addresses(parts, scheme, SENTINEL_PORT)
    service, _, database = map(unquote, parts.path.removeprefix("/").partition("/"))
    _require(service, scheme, "has no service: it is the name in the line `sentinel monitor NAME …` of the sentinels")
    query = parse_qsl(parts.query, keep_blank_values=True)
    shared = _keywords(urlencode([option for option in query if option[0] not in AT_SENTINELS]), scheme)
    if scheme == "rediss+sentinel":
        shared["ssl"] = True
    login = {"username": parts.username, "password": parts.password}
    options["CONNECTION_FACTORY"] = "django_redis.pool.SentinelConnectionFactory"
    options["SENTINELS"] = sentinels
    # By default, redis-py asks a sentinel that is down for several seconds before it asks the next one.
    options["SENTINEL_KWARGS"] = shared | {AT_SENTINELS[name]: value for name, value in query if name in AT_SENTINELS}
    options["SENTINEL_KWARGS"] |= {"retry": Retry(NoBackoff(), 0), **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), options["SOCKET_TIMEOUT"])}
    options["CONNECTION_POOL_KWARGS"] = shared | {name: unquote(value) for name, value in login.items() if value}
    options["CONNECTION_POOL_KWARGS"] |= {"service_name": service, "db": _database(database, scheme)}  # the factory would make the name lower case
    # Pools are kept by LOCATION, so it differs for other sentinels. The fragment has no other effect.
    return {"LOCATION": f"redis://{quote(service, safe='')}/{database}#{scheme}://{_hosts(parts).replace(',', ';')}", "OPTIONS": options}
