"""The environment variables of the service, and the only code that reads them. docs/deploying.md has the same table.

A value is used as it is meant, or refused at start in one line that names the variable. No message shows a value, because a misplaced character can turn
any of them into a password.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from housing.database_url import database
from housing.redis_url import redis_cache

ROOT = Path(__file__).resolve().parent.parent

if (ROOT / ".env").is_file():
    environ.Env.read_env(ROOT / ".env")  # written by `make run`; environment variables take precedence

SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

REDIS_TIMEOUT = 0.2
"""A hit takes less than a millisecond. After 0.2 s without a reply it is better to ask the database, and then nobody waits for FRESHNESS_RETRY seconds."""


class Wrong(ValueError):
    """The value cannot be used. The message is the end of a sentence whose subject is the variable."""


@dataclass(frozen=True)
class Variable:
    """An environment variable: how its text is parsed, what it means, and the text that counts if it is missing or empty."""

    parse: Callable[[str], Any]
    meaning: str
    default: str = ""


def read(name: str) -> Any:
    """Return the value of a variable, or None if it has neither a value nor a default. Raises ImproperlyConfigured in one line."""
    text = text_of(name)
    if not text:
        return None
    try:
        return VARIABLES[name].parse(text)
    except Wrong as wrong:
        why = str(wrong)
    raise ImproperlyConfigured(f"{name} {why}")  # outside, because a traceback would show the first error with the value


def text_of(name: str) -> str:
    """Return the text of a variable, or its default; empty if it has neither."""
    return unquoted(os.environ.get(name, "")) or VARIABLES[name].default


def unquoted(text: str) -> str:
    """The text without the spaces around it, and without the quotes that some tools keep when they read a file of variables."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


# Kinds of values


def secret(text: str) -> str:
    """Any text of one line."""
    _require(text.isprintable(), "has a line break or another control character. Use letters, digits and punctuation.")
    return text


def token(text: str) -> str:
    """A text that a header can carry."""
    _require(re.fullmatch("[!-~]+", text), "has a space, or a character that no header can carry. Use letters, digits and punctuation.")
    return text


def switch(text: str) -> bool:
    """True or false, in the words that people use."""
    _require(text.lower() in SWITCHES, "is neither true nor false.")
    return SWITCHES[text.lower()]


def whole(text: str) -> int:
    """A number that is not negative."""
    _require(re.fullmatch("[0-9]{1,9}", text), "is not a whole number.")
    return int(text)


def processes(text: str) -> int:
    """A number above zero."""
    _require(whole(text), "is zero. Use at least 1.")
    return int(text)


def several(text: str) -> list[str]:
    """Texts with commas or spaces between them, or a list as JSON or Python has it."""
    if re.fullmatch(r"\[\s*(([\"']).*\2)?\s*,?\s*\]", text):
        text = text[1:-1]
    return [entry for entry in (unquoted(part) for part in re.split(r"[,\s]+", text)) if entry]


def hosts(text: str) -> list[str]:
    """Hosts as Django compares them: without scheme, port and path, and an IPv6 address in brackets."""
    return [_host(number, entry) for number, entry in enumerate(several(text), 1)]


def _host(number: int, entry: str) -> str:
    if ":" in entry and _is_address(entry.strip("[]")):
        return f"[{entry.strip('[]')}]"
    entry = entry.replace("*.", ".", 1) if entry.startswith("*.") else entry
    _require(
        entry == "*" or re.fullmatch(r"\.?[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*", entry),
        f"has an entry that is not a host (number {number}). Write each like example.com, .example.com or 127.0.0.1, without scheme, port and path.",
    )
    return entry.lower()


def origins(text: str) -> list[str]:
    """Origins as browsers send them: scheme, host, and a port unless it is the scheme's own."""
    return [_origin(number, entry.rstrip("/")) for number, entry in enumerate(several(text), 1)]


def _origin(number: int, entry: str) -> str:
    _require(
        re.fullmatch(r"https?://(\*\.)?([a-zA-Z0-9_.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?", entry),
        f"has an entry that is not an origin (number {number}). Write each like https://example.com or https://*.example.com.",
    )
    return entry.lower()


def networks(text: str) -> list[str]:
    """IP addresses and networks, or `*` for all."""
    found = several(text)
    for number, entry in enumerate(found, 1):
        _require(
            entry == "*" or _is_network(entry),
            f"has an entry that is not an address (number {number}). Write each like 127.0.0.1, ::1 or 10.0.0.0/8, or * for all.",
        )
    return [entry if entry == "*" else str(ipaddress.ip_network(entry, strict=False)) for entry in found]


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        return bool(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return False


def address(text: str) -> tuple[str, int]:
    """A host and a port."""
    try:
        parts = urlsplit(f"//{text}")
        found = parts.hostname, parts.port, parts.netloc == text and "@" not in text
    except ValueError:
        found = None, None, False
    _require(all(found), "is not a host and a port. Write it like 127.0.0.1:8081.")
    return str(found[0]), int(found[1] or 0)


def folder(text: str) -> str:
    """A folder that exists."""
    try:
        exists = Path(text).is_dir()
    except (OSError, ValueError):  # too long, or with a NUL
        exists = False
    _require(exists, "is not a folder. Create it before the start.")
    return text


def rate(text: str) -> str:
    """A number of requests and a unit of time."""
    _require(re.fullmatch("[1-9][0-9]{0,8}/(second|minute|hour|day)", text), "is not a rate. Write a number of requests and a unit, such as 100/minute.")
    return text


def log_format(text: str) -> str:
    """`line` or `json`."""
    _require(text in ("line", "json"), "is neither line nor json.")
    return text


def redis_url(text: str) -> str:
    """A URL that leads to a Redis. Raises ImproperlyConfigured."""
    redis_cache(text, timeout=REDIS_TIMEOUT)
    return text


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


VARIABLES = {
    "DJANGO_SECRET_KEY": Variable(secret, "signs sessions and links. Required unless debug is on; a long random text"),
    "DJANGO_DEBUG": Variable(switch, "shows errors and the toolbar. For this machine only", "false"),
    "DJANGO_ALLOWED_HOSTS": Variable(hosts, "the hosts in URLs of the service. With debug, this machine's own are the default"),
    "DATABASE_URL": Variable(database, "PostgreSQL, or a SQLite file. Without it, `db.sqlite3` in the folder of the service"),
    "REDIS_URL": Variable(redis_url, "Redis or Valkey, in one of the forms in [operating.md](operating.md#ways-to-connect)", "redis://127.0.0.1:6379/0"),
    "DJANGO_CSRF_TRUSTED_ORIGINS": Variable(origins, "further origins whose forms are accepted. None is needed if the proxy passes on host and scheme"),
    "DJANGO_SECURE_SSL_REDIRECT": Variable(switch, "redirects plain HTTP to HTTPS", "false"),
    "DJANGO_SECURE_HSTS_SECONDS": Variable(whole, "for how long a browser uses HTTPS only. Begin with an hour, 3600", "0"),
    "DJANGO_SECURE_HSTS_INCLUDE_SUBDOMAINS": Variable(switch, "the same for all subdomains", "false"),
    "DJANGO_SECURE_HSTS_PRELOAD": Variable(switch, "allows browsers to have the domain in their list", "false"),
    "DJANGO_USE_X_FORWARDED_HOST": Variable(switch, "the host is that of `X-Forwarded-Host`, from a trusted proxy. Not needed if it passes on `Host`", "false"),
    "FORWARDED_ALLOW_IPS": Variable(networks, "the proxies whose `X-Forwarded-*` headers are trusted: addresses, networks, or `*`", "127.0.0.1,::1"),
    "DJANGO_API_THROTTLE": Variable(rate, "how often each client may read the API, such as `100/minute`. Without it, there is no limit"),
    "DJANGO_LOG_FORMAT": Variable(log_format, "how a line of the log looks: `line` or `json`", "line"),
    "FRESHNESS_METRICS_TOKEN": Variable(token, "opens `/metrics/`. Without it, there are no metrics"),
    "FRESHNESS_FAST_PATH": Variable(switch, "answers hits [before Django](operating.md#hits-before-django)", "true"),
    "PROMETHEUS_MULTIPROC_DIR": Variable(folder, "a folder in which several processes add up their metrics"),
    "WEB_CONCURRENCY": Variable(processes, "how many processes gunicorn or uvicorn starts. Without it, one for each processor"),
    "HEALTH_BIND": Variable(address, "where each process also serves the health checks, behind gunicorn or an ASGI server"),
}
"""Name → variable, in the order of the table."""
