"""The engine's settings: each `FRESHNESS_*` of Django's settings, or its default.

`conf.TTL` is `FRESHNESS_TTL`. A value is looked up once; a test that overrides the setting is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True)
class Setting:
    """A default, its unit, and what the setting decides."""

    default: Any
    unit: str
    meaning: str


SETTINGS: dict[str, Setting] = {
    "MODELS": Setting((), "app labels, or models as app_label.Model", "Which models are tracked; their many-to-many tables and parents come with them."),
    "CACHE": Setting("default", "alias in CACHES", "Which cache holds the journal and the entries. It must be django-redis's."),
    "NAME": Setting("freshness", "token of RFC 8941", "How the cache calls itself in the Cache-Status header."),
    # Longer than a COMMIT takes on a bad day, because a COMMIT must not outlast its lease; and no longer than readers of what a killed process
    # touched may be sent to the database.
    "LEASE": Setting(5.0, "seconds", "How long readers distrust the tags of a transaction that is committing, or that died while it was."),
    # This also bounds what the journal remembers.
    "TTL": Setting(24 * 3600.0, "seconds", "How long an entry lives when nothing invalidates it."),
    # Longer than a page takes on a bad day, and no longer than everybody may be held up by one reader who dies over it.
    "WAIT_TIMEOUT": Setting(0.5, "seconds", "How long a reader waits for the response that another reader is filling."),
    # 1 is the optimum for costs that vary little; more is earlier. XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede
    # Prevention", VLDB 2015.
    "BETA": Setting(1.0, "factor", "How early an entry whose time is nearly up is read again."),
    "IGNORED_SETTINGS": Setting(
        (), "names of settings", "Which of your own settings shape no response and may differ between processes, such as the address of a server."
    ),
    "RUN_ID": Setting(None, "text", "Which run of the Redis server this is; None asks the server. Only for a server that cannot say and always starts empty."),
}


class Conf:
    """The values in force, as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in SETTINGS:
            raise AttributeError(f"There is no setting FRESHNESS_{name}.")
        value = getattr(settings, f"FRESHNESS_{name}", SETTINGS[name].default)
        self.__dict__[name] = value  # so that the next look is a plain attribute
        return value


conf = Conf()


def _forget(setting: str, **_: Any) -> None:
    conf.__dict__.pop(setting.removeprefix("FRESHNESS_"), None)


setting_changed.connect(_forget)
