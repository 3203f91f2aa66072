"""The fast path: hits are answered before Django and its middleware.

No rule of Django's is repeated here. When Django answers a request, the fast path notices which parts of the request are read. Requests with the same values
in these parts are *equal*: Django would answer them in the same way. After two equal requests got the same headers, the next one is looked up in the
journal at once. A hit gets these headers. Any other request goes on to Django, with the result of the lookup.

A response may also depend on something that is not in the request. Therefore one request in each second is answered by Django and compared, and a difference
empties the memory. A view or a middleware that has to see each request is never skipped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic, perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakSet

from django.conf import settings
from django.core.signals import request_finished, request_started, setting_changed
from django.http import HttpResponse, HttpResponseNotModified

from .connection import ours
from .entries import CachedResponse, Look, abandon, look
from .journal import Hit, Miss
from .keys import entry_key
from .metrics import count
from .recent import Recent
from .requests import SAFE, etags_of
from .settings import conf

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

KEPT = 1000
"""How many requests are kept in memory, in the newer and in the older half of it."""

LONGEST = 2000
"""Characters in the parts of a request that is kept."""

KINDS = 4
"""How many different lists of parts are kept. Most services read the same parts of each request."""

CHECK = 1.0
"""Seconds after which one request is answered by Django again, and compared."""

LIFETIME = 60.0
"""Seconds after which an equal request is answered by Django again."""

LESSON = "freshness.lesson"
"""The name in the environment of a request under which the view finds the lesson."""

DJANGOS = (
    *("django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"),
    *("django.middleware.clickjacking.XFrameOptionsMiddleware", "django.middleware.http.ConditionalGetMiddleware", "django.middleware.gzip.GZipMiddleware"),
    *("django.middleware.locale.LocaleMiddleware", "django.contrib.sessions.middleware.SessionMiddleware"),
    *("django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware"),
)
"""The middleware of Django that does nothing but refuse requests and add headers, or whose work shows in `Vary: Cookie`."""

Headers = list[tuple[str, str]]
Make = Callable[[float], str]
"""Makes the value of a header that differs in each response, from the seconds that the response took."""


def unskippable() -> list[str]:
    """Return the middleware that may have to see each request, so that no hit is answered before it."""
    return [name for name in settings.MIDDLEWARE if name not in (*DJANGOS, *conf.SKIPPED_MIDDLEWARE)]


class Environ(dict[str, Any]):
    """The environment of a request. It notices which names are read."""

    def __init__(self, given: WSGIEnvironment) -> None:
        super().__init__(given)
        self.names: set[str] = set()
        self.is_read_whole = False

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a name."""
        if not (name == "HTTP_USER_AGENT" and _is_unused(sys._getframe(1))):
            self.names.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a name."""
        self.names.add(name)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Look up a name, or add it."""
        self.names.add(name)
        return super().setdefault(name, default)

    def values_in(self, environ: WSGIEnvironment) -> dict[str, Any]:
        """Return the parts that were read, with their values before Django changed any; {} if they cannot be compared or are too long."""
        names = sorted(self.names - {"wsgi.input", LESSON})  # the request has no body
        values = {name: environ.get(name) for name in names}
        are_plain = all(value is None or isinstance(value, str | bool) for value in values.values())
        return values if are_plain and sum(len(str(value)) for value in values.values()) <= LONGEST else {}


def _is_unused(caller: FrameType) -> bool:
    """Whether Django's middleware reads the browser's name without a use for it. Each browser would be another request."""
    return caller.f_globals["__name__"] == "django.middleware.common" and not settings.DISALLOWED_USER_AGENTS


def _reading_all(method: str) -> Callable[..., Any]:
    def read(self: Environ, *args: Any) -> Any:
        self.is_read_whole = True
        return getattr(dict, method)(self, *args)

    return read


for _method in ("__iter__", "__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__repr__", "__reduce_ex__"):
    setattr(Environ, _method, _reading_all(_method))
for _method in ("keys", "values", "items", "copy", "popitem"):
    setattr(Environ, _method, _reading_all(_method))


class Ahead:
    """The look at the cache before Django, which the view takes as its first one. So each request is looked up only once."""

    def __init__(self, known: Known, etags: Collection[str]) -> None:
        self.key = known.kind, known.asked, etags
        self.error: Exception | None = None
        self.look: Look | None = None
        self.is_taken = False
        try:
            self.look = look(known.key_in, etags, ours(known.alias))
        except Exception as error:  # noqa: BLE001  # the view raises it, as if it had looked itself
            self.error = error

    @property
    def is_hit(self) -> bool:
        """Whether it found an entry. Its response is not a template yet."""
        return self.look is not None and isinstance(self.look[2], Hit)

    def take(self) -> Look | None:
        """Return the look, or raise its error. None if it was taken before."""
        if self.is_taken:
            return None
        self.is_taken = True
        if self.error:
            raise self.error
        return self.look

    def leave(self) -> None:
        """Report a miss that no view has taken, so that nobody waits for it."""
        if self.look and not self.is_taken and isinstance(self.look[2], Miss):
            abandon(self.look[0], self.look[2])


@dataclass
class Lesson:
    """The view reports its response here. It is in the environment of the request."""

    ahead: Ahead | None = None
    known: Known | None = None
    said: tuple[str, str, str] | None = None
    """The kind of the entry, the canonical text of the request, and the alias of the database."""
    found: CachedResponse | None = None
    is_skippable: bool = False

    def ahead_of(self, kind: str, asked: str, etags: Collection[str]) -> Ahead | None:
        """Return the look that was made already, if it was made for this."""
        return self.ahead if self.ahead and self.ahead.key == (kind, asked, etags) else None

    def say(self, kind: str, asked: str, alias: str, found: CachedResponse) -> None:
        """Report a response of the cache."""
        self.said, self.found = (kind, asked, alias), found


@dataclass(frozen=True)
class Template:
    """The status and the headers of a response. Those in `places` are made for each response."""

    status: str
    has_body: bool
    headers: tuple[tuple[str, str], ...]
    places: tuple[tuple[int, str], ...]


@dataclass(eq=False)
class Known:
    """The responses to equal requests, as far as they are known. `True` is a response with a body, and `False` is 304."""

    kind: str
    asked: str
    alias: str
    due: float = 0.0
    """When the next such request is answered by Django again."""
    templates: dict[bool, Template] = field(default_factory=dict)
    seen: dict[bool, Template] = field(default_factory=dict)
    """The newest response of Django. It is a template after it was seen twice."""

    def allows(self, template: Template) -> bool:
        """Whether a response is the known one, if there is one."""
        return self.templates.get(template.has_body, template) == template

    def has_seen(self, template: Template) -> bool:
        """Keep the newest response. Returns whether it is equal to the last one, so that it is known now."""
        is_again = self.seen.get(template.has_body) == template
        self.seen[template.has_body] = template
        if is_again:
            self.templates[template.has_body] = template
        return is_again

    @cached_property
    def key_in(self) -> Callable[[str], str]:
        """Returns the key of the entry in a database."""
        return partial(entry_key, self.kind, self.asked)


class Memory:
    """Everything that a process has learned under its settings."""

    def __init__(self, begins: float) -> None:
        self.begins = begins
        self.parts: dict[tuple[str, ...], Recent[Any, Known]] = {}
        """The names of the parts that were read → what is known, by their values."""
        self.paths: set[str] = set()
        """The paths that had a hit."""
        self.due = 0.0
        """When the next request is answered by Django, and compared."""

    @cached_property
    def is_on(self) -> bool:
        """Whether hits are answered before Django. In debug they are not, so that the toolbar sees each request."""
        if not conf.FAST_PATH or settings.DEBUG:
            return False
        if missed := unskippable():
            why = "Hits are answered by Django, because %s may have to see each request. If it need not, add it to FRESHNESS_SKIPPED_MIDDLEWARE."
            logger.warning(why, " and ".join(missed))
        return not missed

    def known_at(self, values: dict[str, Any]) -> Known | None:
        """Return what is known about requests with these values."""
        recent = self.parts.get(tuple(values))
        return recent.get(tuple(values.values())) if recent else None

    def recall(self, environ: WSGIEnvironment) -> Known | None:
        """Return what is known about requests that are equal to this one."""
        for names, recent in list(self.parts.items()):
            if (known := recent.get(tuple(map(environ.get, names)))) is not None:
                return known
        return None

    def keep(self, values: dict[str, Any], known: Known) -> None:
        """Keep what is known about requests with these values."""
        if tuple(values) not in self.parts and len(self.parts) >= KINDS:
            self.parts.clear()
        self.parts.setdefault(tuple(values), Recent(lambda: KEPT)).keep(tuple(values.values()), known)

    def expects(self, environ: WSGIEnvironment) -> bool:
        """Whether a hit is likely, so that it is worth noticing what Django reads."""
        return environ.get("PATH_INFO") in self.paths and monotonic() >= self.begins

    def expect(self, environ: WSGIEnvironment) -> None:
        """Expect further hits at the path of this one."""
        if len(self.paths) >= KEPT:
            self.paths.clear()
        self.paths.add(environ["PATH_INFO"])


_all: WeakSet[FastPath] = WeakSet()


class FastPath:
    """A WSGI application that answers hits, and passes every other request to Django's: `application = FastPath(get_wsgi_application())`.

    `made` has a function for each header that differs in each response, such as one that has a time.
    """

    def __init__(self, application: WSGIApplication, made: dict[str, Make] | None = None) -> None:
        self.application, self.made = application, made or {}
        self.forget()
        _all.add(self)

    def forget(self, seconds: float = 0.0) -> None:
        """Forget everything that was learned. Learn nothing for some seconds."""
        self.memory = Memory(monotonic() + seconds)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        began, memory = perf_counter(), self.memory
        if environ.get("REQUEST_METHOD") not in SAFE or not memory.is_on or not _is_plain(environ):
            return self.application(environ, start_response)
        lesson = Lesson()
        try:
            hit = self._hit(environ, memory, lesson, began)
        except Exception:
            logger.exception("A request could not be answered before Django, so Django answers it.")
            hit = None
        if hit is None:
            return self._learn(environ, start_response, memory, lesson)
        status, headers, body = hit
        start_response(status, headers)
        return [body]

    def _hit(self, environ: WSGIEnvironment, memory: Memory, lesson: Lesson, began: float) -> tuple[str, Headers, bytes] | None:
        """Return the response if it is a hit whose headers are known."""
        known = lesson.known = memory.recall(environ)
        if known is None or not known.templates or not monotonic() < min(memory.due, known.due):
            return None
        ahead = lesson.ahead = Ahead(known, etags_of(environ.get("HTTP_IF_NONE_MATCH")))
        if ahead.look is None or not isinstance(found := ahead.look[2], Hit) or (template := known.templates.get(found.body is not None)) is None:
            return None
        if conf.METRICS_TOKEN:
            count(f"{conf.NAME}; hit")
        headers = list(template.headers)
        for at, name in template.places:
            headers[at] = name, self._value(name, found, began)
        return template.status, headers, found.body or b""

    def _value(self, name: str, found: Hit, began: float) -> str:
        if name == "ETag":
            return found.etag
        return str(len(found.body or b"")) if name == "Content-Length" else self.made[name](perf_counter() - began)

    # Responses of Django

    def _learn(self, environ: WSGIEnvironment, start_response: StartResponse, memory: Memory, lesson: Lesson) -> Iterable[bytes]:
        """Let Django answer, and learn from its response if it is a hit."""
        notices = (lesson.known is not None or memory.expects(environ)) and (lesson.ahead is None or lesson.ahead.is_hit)
        given = Environ(environ) if notices else environ
        dict.__setitem__(given, LESSON, lesson)
        sent: list[tuple[str, Headers]] = []

        def start(status: str, headers: Headers, *error: Any) -> Any:
            sent.append((status, headers))
            return start_response(status, headers, *error)

        try:
            response = self.application(given, start)
        finally:
            if lesson.ahead:
                lesson.ahead.leave()
        try:
            if isinstance(given, Environ) and sent:
                self._compare(environ, given, memory, lesson, self._template(given, lesson, *sent[-1], response))
            elif lesson.found:
                memory.expect(environ)
        except Exception:
            logger.exception("Nothing was learned from a response of Django.")
        if given is not environ:
            environ.clear()
            environ.update(dict(dict.items(given)))  # the server logs what Django has changed
        return response

    def _compare(self, environ: WSGIEnvironment, given: Environ, memory: Memory, lesson: Lesson, template: Template | None) -> None:
        """Keep a response of Django as a template if it is equal to the last one. Forget everything if a known request did not get the known response."""
        if lesson.found is not None and not lesson.found.is_plain_hit:  # a miss, for example
            return
        known, is_same = None, False
        if template and lesson.said and (values := given.values_in(environ)):
            known = memory.known_at(values) or Known(*lesson.said)
            is_same = lesson.known in (None, known) and (known.kind, known.asked, known.alias) == lesson.said and known.allows(template)
        if lesson.known and lesson.known.templates and not is_same:
            logger.warning("Two equal requests got responses that differ in more than the cache. For a minute, Django answers all hits.")
            self.forget(LIFETIME)
        elif known and template and is_same:
            if known.has_seen(template):
                known.due, memory.due = monotonic() + LIFETIME, monotonic() + CHECK
            memory.keep(values, known)

    def _template(self, given: Environ, lesson: Lesson, status: str, headers: Headers, response: Any) -> Template | None:
        """Return the headers of Django's response; None if it is not certain that an equal request gets them, too."""
        found = lesson.found
        if found is None or not lesson.is_skippable or given.is_read_whole or _others_listen():
            return None
        if type(response) not in (HttpResponse, HttpResponseNotModified) or response.content != (found.body or b""):
            return None
        fixed, places = [], []
        expected = {"etag": found.etag, "content-length": str(len(response.content)), ":status": str(response.status_code)}
        for at, (name, value) in enumerate([*headers, (":status", "304" if found.body is None else "200")]):
            known = name.lower()
            if known == "set-cookie" or expected.get(known, value) != value or (known == "vary" and _varies(value)):
                return None
            is_made = name in self.made or name in ("ETag", "Content-Length")
            places += [(at, name)] if is_made else []
            fixed.append((name, "" if is_made else value))
        return Template(status, found.body is not None, tuple(fixed[:-1]), tuple(places))


def _is_plain(environ: WSGIEnvironment) -> bool:
    """Whether a request has neither a body nor a condition that only Django knows."""
    return environ.get("CONTENT_LENGTH") in (None, "", "0") and "HTTP_TRANSFER_ENCODING" not in environ and "HTTP_IF_MATCH" not in environ


def _varies(vary: str) -> bool:
    """Whether a response says that it depends on a session."""
    return not {"cookie", "*"}.isdisjoint(part.strip().lower() for part in vary.split(","))


def _others_listen() -> bool:
    """Whether Django calls code other than its own when it begins or ends a request. A hit that is answered before Django would not call it."""
    for signal in (request_started, request_finished):
        for _, receiver, *_ in signal.receivers:
            called = receiver() if isinstance(receiver, ReferenceType) else receiver
            if called is not None and not str(getattr(called, "__module__", "")).startswith("django."):
                return True
    return False


def forget_everything(**_: Any) -> None:
    """Forget what was learned under other settings."""
    for each in _all:
        each.forget()


setting_changed.connect(forget_everything)
