"""The engine's settings: each `FRESHNESS_*` in Django's settings, or its default.

`conf.TTL` is `FRESHNESS_TTL`. A value is cached until a test overrides the setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True)
class Setting:
    """A default, its unit and its meaning."""

    default: Any
    unit: str
    meaning: str


SETTINGS: dict[str, Setting] = {
    "MODELS": Setting((), "app labels, or models as app_label.Model", "Which models are tracked. Their many-to-many tables and parents are tracked, too."),
    "CACHE": Setting("default", "alias in CACHES", "Which cache holds the journal and the entries. It must be django-redis's."),
    "NAME": Setting("freshness", "token of RFC 8941", "The name of the cache in the Cache-Status header."),
    # Longer than the slowest COMMIT, because a COMMIT must not outlive its lease. After a crash, readers query the database for this long.
    "LEASE": Setting(5.0, "seconds", "How long a lease lasts. If a process dies during COMMIT, readers of its tags query the database until then."),
    # The journal keeps its records this long, too.
    "TTL": Setting(24 * 3600.0, "seconds", "How long an entry lives when nothing invalidates it."),
    # A bound on writes that the journal does not know. A shorter one makes hits depend on a database that replies quickly.
    "MAX_STALENESS": Setting(1.0, "seconds", "How old a response may be at most after a write by another program, or by a process that could not reach Redis."),
    "WATCHMAN": Setting(True, "bool", "Whether each serving process has a thread that verifies the journal. If none has, cached responses are not served."),
    # A dead server then costs one request per second a wait for SOCKET_TIMEOUT, and a server that is back is used within a second.
    "RETRY": Setting(1.0, "seconds", "How long Redis is not used after it failed, until one request tries it again; 0 tries it at every request."),
    # Longer than most pages take. If the reader that fills the entry dies, the others wait this long.
    "WAIT_TIMEOUT": Setting(0.5, "seconds", "How long a reader waits for another reader's fill without a sign of life, or without a place of COLD_READS."),
    # As long as the service lets a statement take. A fill is given up after half of it, and another reader takes over.
    "LONGEST_WAIT": Setting(5.0, "seconds", "How long a reader waits at most for other readers' fills while these go on."),
    # Half of the four threads that gunicorn.conf.py sets. A cold page takes milliseconds of the processor, so more at once would not make it quicker.
    "COLD_READS": Setting(2, "reads", "How many reads of a process may use the database at once. Beyond it a read is refused with 503 if they take long."),
    # A restart or a failover of the database takes less.
    "STALE_IF_ERROR": Setting(
        60.0, "seconds", "How old an entry may be that is served while the database cannot be reached, since its last verification; 0 serves none."
    ),
    # 1 is optimal if costs vary little; a larger factor is earlier. XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede
    # Prevention", VLDB 2015.
    "BETA": Setting(1.0, "factor", "How early an entry is refilled before its TTL ends."),
    # A client can ask for any number of them. A page of 20 rows counts as some 16 kB, so this is room for 3,600, and a quarter of what Compose gives Redis.
    "UNLINKED": Setting(60_000_000, "bytes", "How much memory responses may take to which no link leads, such as those to a search; the oldest is deleted."),
    # 600 pages of 20 rows.
    "COPIES": Setting(8_000_000, "bytes", "How much memory of a process copies of responses may take, which Redis then need not send again; 0 keeps none."),
    "FAST_PATH": Setting(True, "bool", "Whether `FastPath` answers hits before Django. In debug it does not."),
    "SKIPPED_MIDDLEWARE": Setting(
        (), "names of MIDDLEWARE", "Which of your middleware a hit may skip: it only refuses requests or adds headers, as the request alone decides."
    ),
    "IGNORED_SETTINGS": Setting(
        (), "names of settings", "Which of your settings shape no response, such as the address of a server. They may differ between processes."
    ),
    "METRICS_TOKEN": Setting(
        "", "text", "The bearer token with which Prometheus reads the metrics. Without one, nothing is counted and no metrics are served."
    ),
    "RUN_ID": Setting(None, "text", "The run id of Redis; None reads it from the server. Only for a server that has none and always starts empty."),
}


class Conf:
    """The values in force, as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in SETTINGS:
            raise AttributeError(f"There is no setting FRESHNESS_{name}.")
        value = getattr(settings, f"FRESHNESS_{name}", SETTINGS[name].default)
        self.__dict__[name] = value  # the next access is a plain attribute
        return value


conf = Conf()


def _forget(setting: str, **_: Any) -> None:
    conf.__dict__.pop(setting.removeprefix("FRESHNESS_"), None)


setting_changed.connect(_forget)
