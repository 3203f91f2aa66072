"""Operations for an operator: show the state of the cache or the entry of a URL, and invalidate a row, a table or everything.

`manage.py cache` and the admin's page show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.db import DatabaseError, connections, router, transaction
from django.db.models import Model
from django.http import Http404, HttpRequest
from django.urls import Resolver404, get_script_prefix, resolve
from django.utils import timezone, translation
from django_redis import get_redis_connection
from redis import exceptions as refusals
from rest_framework.exceptions import APIException

from . import outbox
from .breaker import Unreachable
from .connection import ConnectionMixin, ours
from .entries import Read
from .identity import Unidentified
from .journal import journal, server_address
from .keys import entry_key
from .requests import JSON
from .servers import server_name
from .settings import conf
from .tracking import related_tables, tables
from .views import CachedView

MANY_KEYS = 100_000
"""How many keys are listed at most to count the entries. It takes a tenth of a second per ten thousand."""


class NotListed(Exception):
    """The entries cannot be listed, because the server's user may not run SCAN. The message says what to do."""


class NotTracked(Exception):
    """No cached response depends on a model. The message says why."""


class NotAsked(Exception):
    """A URL has no cached response. The message says why."""


# The state


def status(*, with_entries: bool = True) -> dict[str, Any]:
    """Return the state of the cache, as `manage.py cache status --json` prints it. Raises Unreachable."""
    info, ages = journal.inspect_server(), journal.ages()
    leases = [{"id": lease.id, "tags": list(lease.tags), "seconds_left": seconds} for lease, seconds in journal.leases().items()]
    state = {
        "server": f"{server_name(info)} at {server_address(get_redis_connection(conf.CACHE))}",
        "journal": ages and {"seconds_since_last_instant": ages[0], "seconds_recorded": ages[1]},
        "leases": leases,
        "databases": [_database(connection) for alias in connections if isinstance(connection := connections[alias], ConnectionMixin)],
        "memory": {"used": int(info["used_memory"]), "limit": int(info.get("maxmemory", 0)) or None} if "used_memory" in info else None,
    }
    return state | ({"entries": _count()} if with_entries else {})


def _database(connection: ConnectionMixin) -> dict[str, Any]:
    """The lag of the verification of a database, and the rows in its outbox."""
    found: dict[str, Any] = {"alias": connection.alias, "seconds_since_verified": None, "outbox_rows": None, "error": None}
    try:
        found["seconds_since_verified"] = journal.verified(connection.database_identity())
        with transaction.atomic(using=connection.alias):  # the error of a missing table would end the caller's transaction
            found["outbox_rows"] = outbox.count(connection)
    except Unidentified as why:
        found["error"] = str(why)
    except DatabaseError as error:
        found["error"] = f"{' '.join(str(error).split())}. If a table is missing, run `manage.py migrate`."
    return found


def _count() -> dict[str, Any]:
    try:
        count = sum(1 for _ in islice(keys(), MANY_KEYS))
    except NotListed as why:
        return {"count": None, "is_all": False, "error": str(why)}
    return {"count": count, "is_all": count < MANY_KEYS, "error": None}


def keys() -> Iterator[str]:
    """Yield the keys of all entries. Raises NotListed if the server does not allow it, and Unreachable."""
    client = get_redis_connection(conf.CACHE)
    try:
        yield from (key.decode() for key in client.scan_iter(caches[conf.CACHE].make_key("*"), count=1000, _type="hash"))
    except refusals.NoPermissionError as error:
        raise NotListed("The user of Redis may not list keys. Allow it +scan, or look at one URL at a time.") from error
    except refusals.RedisError as error:
        raise Unreachable(f"Redis is unreachable ({error}).") from error


# An entry


@dataclass(frozen=True)
class Asked:
    """A request that has a cached response: its key, the function that reads it from the database, and the alias of that database."""

    key: str
    read: Read
    using: str


@contextmanager
def asking(address: str) -> Iterator[Asked]:
    """Ask for the response at an address again: a URL or a path, and its language and time zone if they are not the current ones.

    Raises NotAsked, and what reads the database's identity raises.
    """
    url, language, zone, *_ = [*address.split(" "), "", ""]
    try:
        with _in(language, zone):
            request = _request(url)
            view = _view(request)
            kind, asked, read = view.asked(request)
            yield Asked(entry_key(kind, asked, ours(view.using).database_identity()), read, view.using)
    except (ZoneInfoNotFoundError, Resolver404, DisallowedHost) as error:
        why = error if isinstance(error, DisallowedHost) else "There is no such URL or time zone."
        raise NotAsked(f"{url}: {why}") from error
    except (APIException, Http404) as refused:
        raise NotAsked(f"{url}: the view refuses it. {_detail(refused)}") from refused


@contextmanager
def _in(language: str, zone: str) -> Iterator[None]:
    """Activate a language and a time zone, unless they are empty or active."""
    with ExitStack() as activated:
        if language and language != translation.get_language():
            activated.enter_context(translation.override(language))
        if zone and zone != timezone.get_current_timezone_name():
            activated.enter_context(timezone.override(ZoneInfo(zone)))
        yield


def _detail(refused: Exception) -> str:
    """The text that DRF would send with this error."""
    detail = getattr(refused, "detail", None) or "Not found."
    return " ".join(f"{name}: {' '.join(map(str, why))}" for name, why in detail.items()) if isinstance(detail, dict) else str(detail)


def _request(url: str) -> HttpRequest:
    """A GET of JSON, as a WSGI server makes it."""
    try:
        parts, prefix = urlsplit(url), get_script_prefix().rstrip("/")
    except ValueError as error:
        raise NotAsked(f"{url} is not a URL.") from error
    host = parts.netloc or next((name for name in settings.ALLOWED_HOSTS if name.strip(".*")), "localhost").lstrip(".")
    return WSGIRequest(
        {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": prefix,
            "PATH_INFO": unquote_to_bytes(parts.path.removeprefix(prefix) or "/").decode("latin-1"),
            "QUERY_STRING": parts.query,
            "HTTP_HOST": host,
            "HTTP_ACCEPT": JSON,
            "SERVER_NAME": host,
            "SERVER_PORT": "443" if parts.scheme == "https" else "80",
            "wsgi.url_scheme": parts.scheme or "http",
            "wsgi.input": BytesIO(),
        }
    )


def _view(request: HttpRequest) -> Any:
    """The cached view of a request, set up as DRF does."""
    match = resolve(request.path_info)
    found: Any = match.func
    if not issubclass(getattr(found, "cls", object), CachedView):
        raise NotAsked(f"{request.path}: its view is not a CachedView.")
    view = found.cls(**found.initkwargs)
    view.action_map = getattr(found, "actions", None)
    for method, action in (view.action_map or {}).items():  # of a viewset
        setattr(view, method, getattr(view, action))
    request.resolver_match = match
    view.setup(request, *match.args, **match.kwargs)
    return view


# Invalidation


def invalidate(tags: Iterable[str]) -> None:
    """Make each response stale that depends on one of these tags and was read before now. Raises Unreachable."""
    journal.close(journal.lease(set(tags)))


def tags_of_model(model: type[Model]) -> set[str]:
    """The tags of a write to unknown rows of a model, its parents and its many-to-many tables. Raises NotTracked if none of them is."""
    found = [tables()[name] for name in related_tables(model) if name in tables()]
    if not found:
        raise NotTracked(f"{model._meta.label} is not tracked, so no cached response depends on it. FRESHNESS_MODELS lists the tracked models.")
    return {tag for table in found for tag in table.all}


def tags_of_row(model: type[Model], key: Any) -> set[str] | None:
    """The tags of an INSERT, an UPDATE of all columns and a DELETE of one row. None if they are not known, so the whole table is to be invalidated.

    Raises ValidationError if it is no primary key of the model, and NotTracked if the model is not.
    """
    tags_of_model(model)
    key = model._meta.pk.to_python(key)
    table = tables().get(model._meta.db_table)
    if table is None or table.pk_text is None or model._meta.get_parent_list():
        return None
    tags = {table.name, f"{table.name}:+", f"{table.name}:-", f"{table.name}:{table.pk_text(key)}", table.unscoped}  # the old scopes are unknown
    tags |= {f"{table.name}.{field.column}" for field in model._meta.local_concrete_fields}
    references = {str(field.column): field.attname for field in model._meta.local_concrete_fields if field.is_relation}
    if references.keys() != table.references.keys():
        return None
    for alias in [alias for alias in connections if router.allow_migrate_model(alias, model)]:
        try:
            row = model._base_manager.using(alias).filter(pk=key).values(*references.values()).first()
        except DatabaseError:
            row = None
        if row is None:  # to which rows it referred is not known any more
            return None
        tags |= {f"{table.name}.{column}={table.references[column](row[name])}" for column, name in references.items() if row[name] is not None}
    return tags
