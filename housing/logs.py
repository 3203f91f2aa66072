"""Log lines: one for each response with 5xx, each refused write and each refused host, with the method, the path and the id of its request."""

from __future__ import annotations

import json
import logging
import re
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.http import HttpRequest

SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
"""The methods that write nothing (RFC 9110, section 9.2.1)."""

ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
"""The ids that a proxy may send as `X-Request-ID`. Any other text could be a line of its own in the log."""


def id_of(request: HttpRequest) -> str:
    """Return the id of a request: that of the proxy in front, from `X-Request-ID`, or a new one. It is the same whenever the request is logged."""
    known = vars(request)
    if "_id" not in known:
        sent = request.META.get("HTTP_X_REQUEST_ID", "")
        known["_id"] = sent if ID.fullmatch(sent) else uuid.uuid4().hex
    return str(known["_id"])


class Operators(logging.Filter):
    """Keeps of Django's own lines those that concern an operator: errors, and writes that were refused. In debug it keeps those of no request, too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is kept."""
        request = getattr(record, "request", None)
        if not isinstance(request, HttpRequest):  # runserver logs its socket as the request
            return settings.DEBUG or record.levelno >= logging.WARNING
        return getattr(record, "status_code", 500) >= 500 or request.method not in SAFE


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the method, the path and the id of the record's request, and its status."""
    request = getattr(record, "request", None)
    if not isinstance(request, HttpRequest):
        return {}
    facts = {"method": request.method, "path": request.path, "id": id_of(request), "status": getattr(record, "status_code", None)}
    return {name: value for name, value in facts.items() if value is not None}


class Line(logging.Formatter):
    """One line: `ERROR 503 for /api/…: The database is unavailable: … [GET /api/… 5f0c…]`. The calls that led to an error follow in it, the last one first."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = facts_of(record)
        about = f" [{facts['method']} {facts['path']} {facts['id']}]" if facts else ""
        line = f"{record.levelname} {record.getMessage()}{about}{where(record)}"
        return line if line.isprintable() else "".join(map(visible, line))


class JSONLine(logging.Formatter):
    """The same as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {"time": at(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()} | facts_of(record)
        return json.dumps(said | ({"error": error} if (error := where(record)) else {}))


def at(record: logging.LogRecord) -> str:
    """Return the time of a record."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def visible(character: str) -> str:
    """Return a character as it is, or escaped if it would break the line."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def where(record: logging.LogRecord) -> str:
    """Return the error of a record, and the calls that led to it."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    calls = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(traceback.extract_tb(error.__traceback__))]
    return f" {type(error).__name__}: {' '.join(str(error).split())} < {' < '.join(calls)}"
