"""A fingerprint of the code, libraries and settings, which shape the bytes of a response and its tags.

Processes with different code, libraries or settings have different fingerprints, so neither serves the other's bytes. An unknown setting is included.
Processes of one deployment have the same fingerprint, so they share their entries.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import os
import sys
import sysconfig
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from copyreg import dispatch_table
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from pickle import PickleError
from types import FunctionType, ModuleType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

from .settings import conf

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "Each key has the identity of the database, which is read from the database itself.": ("DATABASES",),
    "They set where entries are stored. The cache adds its prefix and version to each key.": ("CACHES",),
    "It is the key of the HMAC that makes the fingerprint.": ("SECRET_KEY",),
    "Links are signed with SECRET_KEY. Fallback keys only accept older links.": ("SECRET_KEY_FALLBACKS",),
    "All values of the settings module are included, so its name does not matter.": ("SETTINGS_MODULE",),
    "They shape log lines.": ("LOGGING", "LOGGING_CONFIG"),
    "They refuse requests, or show debugging aids. Accepted requests get the same bytes.": (
        "ALLOWED_HOSTS",
        "CSRF_TRUSTED_ORIGINS",
        "DISALLOWED_USER_AGENTS",
        "INTERNAL_IPS",
        "DATA_UPLOAD_MAX_MEMORY_SIZE",
        "DATA_UPLOAD_MAX_NUMBER_FIELDS",
        "DATA_UPLOAD_MAX_NUMBER_FILES",
    ),
    "They shape cookies and headers, which are not cached.": (
        "CSRF_COOKIE_AGE",
        "CSRF_COOKIE_DOMAIN",
        "CSRF_COOKIE_HTTPONLY",
        "CSRF_COOKIE_PATH",
        "CSRF_COOKIE_SAMESITE",
        "CSRF_COOKIE_SECURE",
        "SECURE_CONTENT_TYPE_NOSNIFF",
        "SECURE_CROSS_ORIGIN_OPENER_POLICY",
        "SECURE_HSTS_INCLUDE_SUBDOMAINS",
        "SECURE_HSTS_PRELOAD",
        "SECURE_HSTS_SECONDS",
        "SECURE_REFERRER_POLICY",
        "SESSION_COOKIE_AGE",
        "SESSION_COOKIE_DOMAIN",
        "SESSION_COOKIE_HTTPONLY",
        "SESSION_COOKIE_PATH",
        "SESSION_COOKIE_SAMESITE",
        "SESSION_COOKIE_SECURE",
        "X_FRAME_OPTIONS",
    ),
    "They shape e-mail.": (
        "ADMINS",
        "DEFAULT_FROM_EMAIL",
        "EMAIL_BACKEND",
        "EMAIL_HOST",
        "EMAIL_HOST_PASSWORD",
        "EMAIL_HOST_USER",
        "EMAIL_PORT",
        "EMAIL_SSL_CERTFILE",
        "EMAIL_SSL_KEYFILE",
        "EMAIL_SUBJECT_PREFIX",
        "EMAIL_TIMEOUT",
        "EMAIL_USE_LOCALTIME",
        "EMAIL_USE_SSL",
        "EMAIL_USE_TLS",
        "MANAGERS",
        "SERVER_EMAIL",
    ),
    "It is the password of the metrics.": ("FRESHNESS_METRICS_TOKEN",),
    "They decide whether a hit is answered before Django, with the same bytes.": ("FRESHNESS_FAST_PATH", "FRESHNESS_SKIPPED_MIDDLEWARE"),
    "They affect only tests and `check`.": ("SILENCED_SYSTEM_CHECKS", "TEST_NON_SERIALIZED_APPS", "TEST_RUNNER"),
}
"""Reason → the Django settings that are left out. A project lists its own in FRESHNESS_IGNORED_SETTINGS."""

CODE = (".py", ".lua", ".sql", ".mo", ".so", ".pyd")
"""Suffixes of code files. Migrations and tests are included, because any module may import them."""

TEMPLATES = {"templates", "jinja2"}
"""Folders whose files are all included."""

PRUNED = {"__pycache__", "node_modules"}

PLAIN = (type(None), bool, int, float, complex, bytes, range, decimal.Decimal, uuid.UUID, datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
"""Types whose `repr` is their whole state."""


@cache
def fingerprint() -> str:
    """Return the fingerprint of this process. It is keyed with SECRET_KEY, which signs the links in the bytes."""
    return salted_hmac("freshness.fingerprint", "\n".join([code_in_force(), *settings_in_force()]), algorithm="sha256").hexdigest()[:16]


@cache
def version() -> str:
    """Return the name of this version of the code, libraries and settings in the journal: the beginning of the fingerprint, because each command sends it."""
    return fingerprint()[:8]


# Code


def code_in_force() -> str:
    """Return a hash of the versions of all libraries and of all other source code."""
    return _hash_of_code(frozenset(_own_packages()))


@lru_cache(maxsize=8)
def _hash_of_code(packages: frozenset[str]) -> str:
    lines = [sys.implementation.name, ".".join(map(str, sys.version_info[:3])), *distributions()]
    lines += [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(sources(packages).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def distributions() -> list[str]:
    """Return the names of the metadata folders of installed packages, which include their versions."""
    found: set[str] = set()
    for folder in set(sys.path):
        if (site := Path(folder)).is_dir():
            found.update(path.name for path in site.iterdir() if path.name.endswith((".dist-info", ".egg-info")))
    return sorted(found)


def sources(packages: Collection[str]) -> dict[str, Path]:
    """Return the code and templates of these packages, and the templates and translations in the settings: name → path."""
    found: dict[str, Path] = {}
    for package in packages:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            for folder in spec.submodule_search_locations:
                found |= {f"{package}/{name}": path for name, path in _files(Path(folder)) if _shapes(name)}
        elif spec and spec.origin and Path(spec.origin).is_file():
            found[package] = Path(spec.origin)
    engines: list[Any] = settings.TEMPLATES
    folders = [folder for engine in engines for folder in engine.get("DIRS", ())]
    for number, folder in enumerate([*folders, *settings.LOCALE_PATHS]):
        found |= {f"{number}:{name}": path for name, path in _files(Path(folder))}
    return found


def _own_packages() -> Iterator[str]:
    """Yield the packages that are not libraries. Those of the settings and of the URLs never are, even if they are installed."""
    for module in (getattr(settings, "SETTINGS_MODULE", None) or os.environ.get("DJANGO_SETTINGS_MODULE"), settings.ROOT_URLCONF):
        if isinstance(module, str):
            yield module.partition(".")[0]
    for app in apps.get_app_configs():
        if not _is_library(Path(app.path)):
            yield app.name.partition(".")[0]


def _is_library(folder: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(folder.parts) or folder.is_relative_to(sysconfig.get_path("stdlib"))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in PRUNED and not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path


def _shapes(name: str) -> bool:
    return name.endswith(CODE) or not TEMPLATES.isdisjoint(name.split("/")[:-1])


# Settings


def settings_that_count() -> list[str]:
    """Return the names of all settings that are not left out."""
    left_out = {name for names in LEFT_OUT.values() for name in names} | {*conf.IGNORED_SETTINGS}
    return [name for name in sorted(dir(settings)) if name.isupper() and name not in left_out]


def settings_in_force() -> list[str]:
    """Return a line for each included setting. A value without a stable text gets a random one, so the entries of this process are not shared."""
    return [f"{name}={_text_or(_secret_of_this_process, getattr(settings, name))}" for name in settings_that_count()]


def settings_without_text() -> Iterator[tuple[str, Any]]:
    """Yield the settings whose values have no stable text."""
    for name in settings_that_count():
        if not _text_or(str, value := getattr(settings, name)):
            yield name, value


@cache
def _secret_of_this_process() -> str:
    return os.urandom(16).hex()


def _text_or(otherwise: Callable[[], str], value: Any) -> str:
    try:
        return text_of(value)
    except (TypeError, AttributeError, ValueError, RecursionError, PickleError):  # an object that pickle cannot reduce
        return otherwise()


def text_of(value: Any, above: tuple[int, ...] = ()) -> str:
    """Return a text that is the same in every process for equal values, without memory addresses. Raises if an object cannot be reduced."""
    if id(value) in above:
        return f"the value {len(above) - above.index(id(value))} above"
    return _simple(value) or _compound(value, lambda parts: [text_of(part, (*above, id(value))) for part in parts])


def _simple(value: Any) -> str | None:
    if isinstance(value, str):
        return repr(str(value))
    if type(value) in PLAIN or isinstance(value, PurePath):
        return f"{_name_of(type(value))}({value!r})"
    if isinstance(value, type):
        return _name_of(value)
    if isinstance(value, ModuleType):
        return value.__name__
    return None


def _compound(value: Any, texts: Callable[[Iterable[Any]], list[str]]) -> str:
    kind = _name_of(type(value))
    if isinstance(value, FunctionType):
        inside = (cell.cell_contents for cell in value.__closure__ or ())
        return f"{_name_of(value)}:{value.__code__.co_firstlineno}{texts([value.__defaults__, value.__kwdefaults__, *inside])}"
    if isinstance(value, Mapping):
        return f"{kind}{sorted(zip(texts(value.keys()), texts(value.values()), strict=True))}"
    if isinstance(value, Set):
        return f"{kind}{sorted(texts(value))}"
    if isinstance(value, list | tuple):
        return f"{kind}{texts(value)}"
    reduce = dispatch_table.get(type(value))  # pickle reduces lazy translations without a language
    parts: Any = reduce(value) if reduce else value.__reduce_ex__(4)
    return f"{kind}:{parts}" if isinstance(parts, str) else f"{kind}{texts(list(part) if isinstance(part, Iterator) else part for part in parts)}"


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _setting_changed(**_: Any) -> None:
    fingerprint.cache_clear()
    version.cache_clear()


setting_changed.connect(_setting_changed)
