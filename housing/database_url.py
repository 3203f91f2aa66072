"""DATABASE_URL as the settings of a Django database: PostgreSQL over TCP, TLS or a Unix socket, or a SQLite file.

Everything is checked here, because an option that the driver does not know, or a password with a misplaced character, would be an error at every request.
No message shows a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

ENGINES = {"sqlite": "housing.freshness.sqlite3", "postgres": "housing.freshness.postgresql", "postgresql": "housing.freshness.postgresql"}
"""Scheme → the backend that opens leases."""

FORMS = "postgres://USER:PASSWORD@HOST:PORT/NAME, or sqlite:///PATH"
ENCODED = "percent-encoded, such as %40 for @"

POOL = {"min_size": 1, "max_size": 10, "timeout": 2}
"""Connections of each process with `?pool=true`: four threads, the watchman, the health check, and some to spare. Nobody waits longer for one than
for a new connection."""

NOWHERE = "/nowhere"
"""A folder without a socket, where libpq fails before it connects."""


def database(url: str) -> dict[str, Any]:
    """Return the settings of the database at this URL. Raises ImproperlyConfigured in one line."""
    match = re.match("([a-z]+)://", url)
    scheme = match[1] if match else ""
    _require(scheme in ENGINES, "does not begin with a supported scheme")
    parts = _parts(url)
    options = _options(parts.query)
    settings: dict[str, Any] = {name.upper(): _value(SETTINGS, name, options.pop(name)) for name in SETTINGS if name in options}
    settings = (_sqlite if scheme == "sqlite" else _postgresql)(parts, options) | settings | {"ENGINE": ENGINES[scheme]}
    if "pool" in settings["OPTIONS"]:
        _require(settings.setdefault("CONN_MAX_AGE", 0) == 0, "has both pool and conn_max_age, and a pool keeps the connections itself")
    return settings


def _require(holds: object, what: str) -> None:
    if not holds:
        raise ImproperlyConfigured(f"DATABASE_URL {what}. Use {FORMS}.")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are not around an IPv6 address
        parts = SplitResult("", "", "", "", "invalid")
    _require(not parts.fragment and "@" not in parts.path + parts.query and unquote(url).isprintable(), f"contains a character that must be {ENCODED}")
    return parts


def _options(query: str) -> dict[str, str]:
    """The options of a query by their names in lower case, each once."""
    try:
        pairs = [(name.lower(), value) for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))]
    except ValueError:
        pairs = [("", "")]
    _require(all(name and value for name, value in pairs), f"has an option without a name or a value, or with a character that must be {ENCODED}")
    _require(len(dict(pairs)) == len(pairs), "has an option twice")
    return dict(pairs)


# Values of options


def _switch(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _whole_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else _whole(text)


def _whole(text: str) -> int:
    return int(_matching("[0-9]{1,9}", text))


def _seconds(text: str) -> float:
    return float(_matching(r"[0-9]{1,6}(\.[0-9]{1,6})?", text))


def _matching(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError
    return text


def _mode(text: str) -> str:
    return {"deferred": "DEFERRED", "immediate": "IMMEDIATE", "exclusive": "EXCLUSIVE"}[text.lower()]


def _isolation(text: str) -> int:
    return {"1": 1, "2": 2, "3": 3, "4": 4}[text]


SETTINGS: dict[str, Callable[[str], Any]] = {
    "conn_max_age": _whole_or_none,
    "conn_health_checks": _switch,
    "atomic_requests": _switch,
    "autocommit": _switch,
    "disable_server_side_cursors": _switch,
}
"""Options that are settings of Django's, with how they are parsed."""

SQLITE: dict[str, Callable[[str], Any]] = {"timeout": _seconds, "transaction_mode": _mode, "init_command": str}
"""Options of SQLite. `timeout` is how many seconds a writer waits for another one."""

POSTGRESQL: dict[str, Callable[[str], Any]] = {
    "pool": _switch,
    "isolation_level": _isolation,
    "server_side_binding": _switch,
    "prepare_threshold": _whole_or_none,
    "assume_role": str,
    "timeout": _whole,
    **dict.fromkeys(("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"), _whole),
}
"""Options that libpq does not check before it connects. `timeout` is another name of its connect_timeout. It knows the others, such as sslmode."""


def _value(kinds: dict[str, Callable[[str], Any]], name: str, text: str) -> Any:
    value: Any = None
    failed = False
    try:
        value = kinds.get(name, str)(text)
    except (KeyError, ValueError):
        failed = True
    _require(not failed, f"has an invalid value of the option {name}")  # outside, because a traceback would show the first error with the value
    return value


# The two engines


def _sqlite(parts: SplitResult, options: dict[str, str]) -> dict[str, Any]:
    path = unquote(parts.path.removeprefix("/"))
    _require(not parts.netloc, "has a host, and a file has none. A path begins after the third slash")
    _require(path and path != ":memory:", "has no file, and each connection would have a database of its own in memory")
    _require(options.keys() <= SQLITE.keys(), "has an option that SQLite does not have")
    return {"NAME": path, "OPTIONS": {name: _value(SQLITE, name, text) for name, text in options.items()}}


def _postgresql(parts: SplitResult, options: dict[str, str]) -> dict[str, Any]:
    hosts, ports = _addresses(parts.netloc.rpartition("@")[2])
    path = unquote(parts.path.removeprefix("/"))
    folder, _, name = path.rpartition("/")
    _require(not folder or (folder.startswith("/") and not hosts), f"contains a character that must be {ENCODED}, or a path in place of a name")
    _require(name or options.keys() & {"dbname", "service"}, "has no name of a database")
    found = {option: _value(POSTGRESQL, option, text) for option, text in options.items()}
    _check_with_libpq({option: value for option, value in found.items() if option not in POSTGRESQL})
    if "timeout" in found:
        found["connect_timeout"] = found.pop("timeout")
    if found.pop("pool", False):
        found["pool"] = POOL | {"timeout": found.get("connect_timeout", POOL["timeout"])}
    login = {"USER": unquote(parts.username or ""), "PASSWORD": unquote(parts.password or "")}
    return login | {"NAME": name, "HOST": folder or hosts, "PORT": ports, "OPTIONS": found}


def _addresses(text: str) -> tuple[str, str]:
    """The hosts and the ports, each with commas between them as libpq has them: several are a server and its standbys."""
    found = []
    for each in text.split(","):
        try:
            address = urlsplit(f"//{each}")
            found.append((unquote(address.hostname or ""), 0 if address.port == 0 else address.port or ""))
        except ValueError:
            found.append(("", 0))
    _require(
        all(port != 0 for _, port in found), f"has an invalid port: it is a number from 1 to 65535, and special characters of a password must be {ENCODED}"
    )
    _require(text == "" or all(host for host, _ in found), "has no host, or an empty one in its list")
    ports = [str(port) for _, port in found]
    return ",".join(host for host, _ in found), ",".join(ports) if any(ports) else ""


def _check_with_libpq(options: dict[str, Any]) -> None:
    """Refuse what libpq refuses before it connects. It knows its options better than any list here."""
    from psycopg.pq import Conninfo, PGconn

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    _require(options.keys() <= known, f"has an option that PostgreSQL's client does not have: {', '.join(sorted(options.keys() - known))}")
    given = {name: value for name, value in options.items() if name not in ("service", "passfile", "host", "hostaddr", "port", "dbname")}
    quoted = [f"{name}='{value}'" for name, value in given.items() if "'" not in value and "\\" not in value]
    attempt = PGconn.connect_start(" ".join([f"host={NOWHERE}", *quoted]).encode())
    _require(NOWHERE in attempt.error_message.decode(errors="replace"), f"has an invalid value of an option: {', '.join(given)}")
