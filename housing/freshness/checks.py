"""Django system checks of what stands in a key. They ask a database only under `check --database`, as Django's own do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core import checks
from django.db import OperationalError, connections
from django.db.migrations.recorder import MigrationRecorder

from .fingerprint import settings_without_text
from .identity import IdentifiedMixin, Unidentified

Found = list[checks.CheckMessage]


def connect() -> None:
    """Register the checks."""
    checks.register(database_has_an_identity, checks.Tags.database)
    checks.register(settings_have_a_text)


def database_has_an_identity(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> Found:
    """Without an identity nothing is cached. A database that was never migrated has none yet, and `migrate` says nothing about that."""
    ours = [connection for alias in databases or () if isinstance(connection := connections[alias], IdentifiedMixin)]
    return [message for connection in ours for message in _identity_of(connection)]


def _identity_of(connection: Any) -> Iterator[checks.CheckMessage]:
    try:
        connection.database_identity()
        if why := getattr(connection, "why_cluster_unknown", ""):
            yield checks.Warning(
                f"The database '{connection.alias}' does not tell which cluster it is in ({why}). "
                "A cluster that was restored from a backup or promoted serves the responses that were cached before.",
                hint="As a superuser, GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO the role of the service.",
                id="freshness.W002",
            )
    except Unidentified as why:
        if MigrationRecorder(connection).has_table():
            yield checks.Warning(f"Responses are not cached. {why}", id="freshness.W001")
    except OperationalError:  # unreachable, which other checks report
        return


def settings_have_a_text(app_configs: Any, **_: Any) -> Found:
    """A setting that cannot be compared between processes might shape their responses, so each process keeps to itself."""
    return [
        checks.Warning(
            f"The setting {name} holds a {type(value).__qualname__}, which cannot be compared with that of another process. "
            "No two processes share cached responses.",
            hint=f"If {name} shapes no response, add its name to FRESHNESS_IGNORED_SETTINGS. Otherwise use a value that pickle can take apart.",
            id="freshness.W003",
        )
        for name, value in settings_without_text()
    ]
