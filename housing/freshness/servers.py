"""Which servers can keep the promise: what their INFO must contain, and which commands their user must be allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SENT = ("info", "script|load", "evalsha")
"""The commands that the journal sends."""

SCRIPTED = {
    "del": 1,
    "hdel": 2,
    "hget": 2,
    "hmget": 2,
    "hset": 3,
    "pexpire": 2,
    "time": 0,
    "zadd": 3,
    "zmscore": 2,
    "zrangebyscore": 3,
    "zrem": 2,
    "zremrangebyscore": 3,
}
"""Command that the journal's script runs → how many arguments it needs at least, its key included.

The permission to run it is checked with as many, because newer servers raise an error if there are fewer.
"""

COMMANDS = (*SENT, *SCRIPTED)
"""The commands that an ACL must allow to the user of the cache, on the keys of the cache. A database other than 0 needs `select`, too."""

OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}
"""The oldest release of each server that can keep the promise."""


@dataclass(frozen=True)
class Objection:
    """A reason why a server cannot keep the promise, and the remedy."""

    server: str
    reason: str
    remedy: str


def parsed(info: str) -> dict[str, str]:
    """The fields of a reply to INFO."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)


def server_name(info: Mapping[str, str]) -> str:
    """The server's name, with its version if INFO has one."""
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    return f"{name} {info.get(f'{name.lower()}_version', '')}".strip()


def objection(info: Mapping[str, str]) -> Objection | None:
    """The reason why the server with this INFO cannot keep the promise, or None if it can."""
    server = server_name(info)
    name, *version = re.findall(r"[A-Z]\w+|\d+", server)
    if not info.get("run_id") or not version:
        why, remedy = "its INFO lacks the run_id or the version, so an old dump looks like the current data.", "Use a server whose INFO has both."
    elif tuple(map(int, version[:2])) < OLDEST[name]:
        why = "before Redis 7.0 a script survives a restart and a failover, and an old dump looks like the current data."
        remedy = "Use Redis 7.0 or newer, or Valkey 7.2 or newer."
    elif "cluster" in (info.get("redis_mode"), info.get("server_mode")):  # the second is Valkey's
        why, remedy = "it is a cluster, in which the journal and the entries are on several nodes.", "Use a server without cluster-enabled."
    elif info.get("role") == "slave":
        why, remedy = "it is a replica, which lags behind another server and takes no lease.", "Use the primary's address."
    else:
        return None
    return Objection(server, why, remedy)


def permission_objection(server: str, complaint: str, keys: str) -> Objection:
    """The objection to a server whose user may not run what the journal needs. `keys` is the pattern of the cache's keys."""
    rules = " ".join(f"+{command}" for command in COMMANDS)
    return Objection(server, f"its user lacks a permission ({complaint}).", f"Allow it ~{keys} {rules}")
