"""The access log of the service as it is deployed: gunicorn's, with a line for each response. The worker makes the records, because logging takes longer."""

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gunicorn.glogging import Logger

from housing import worker
from tests.fixtures.workers import idle_process, watcher_of
from tests.stacks import TIMEOUT


@pytest.fixture
def idle(monkeypatch):
    """A worker that has not begun. `idle.records` has the records of its access log, and `idle.lines()` the lines."""
    with idle_process() as made:
        made.records = []
        made.lines = lambda: [record.getMessage() for record in made.records]
        handler = logging.Handler()
        handler.emit = made.records.append
        monkeypatch.setattr(Logger, "access_log_enabled", True)
        monkeypatch.setattr(made.log.access_log, "handlers", [handler])
        yield made
        made.log.access_log.setLevel(logging.INFO)


@pytest.mark.parametrize(("query", "shown"), [("", "/a%20b"), ("x=1", "/a%20b?x=1")])
def test_the_access_log_has_a_line_for_each_request(idle, monkeypatch, query, shown):
    """With the address that a trusted proxy has forwarded, the path as it was sent, and the id of the request."""
    monkeypatch.setattr(worker.time, "monotonic", lambda: 7.0)

    def settled(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["REMOTE_ADDR"] = "198.51.100.7"
        start_response("200 OK", [])
        return [b"four"]

    idle.cfg.set("access_log_format", '%(h)s "%(r)s" %(s)s %(B)s %(M)sms %({x-request-id}i)s %(m)s %(U)s %(q)s')
    idle.wsgi = settled
    idle.begin(watcher_of(idle, "/a b", QUERY_STRING=query, HTTP_X_REQUEST_ID="an-id"))
    idle.begin(watcher_of(idle, "/a b", QUERY_STRING=query))

    assert idle.lines() == [f'198.51.100.7 "GET {shown} HTTP/1.1" 200 4 0ms {sent} GET /a b {query or "-" * 0}' for sent in ("an-id", "-")]


def test_the_format_may_have_any_name_of_gunicorns(idle):
    """Names of headers have any case. `-` stands for what the worker does not know, as gunicorn writes it for a header that was not sent."""
    idle.cfg.set("access_log_format", "%({X-Request-ID}i)s %({X-Other}i)s %(u)s %(m)s")
    idle.begin(watcher_of(idle, HTTP_X_REQUEST_ID="an-id"))

    assert idle.lines() == ["an-id - - GET"]


def test_a_quote_of_a_client_does_not_end_the_quotes_of_a_line(idle):
    """Otherwise the client could write the rest of the line, for example its status."""
    idle.cfg.set("access_log_format", "%(h)s %(r)s %(U)s %(q)s %({x-request-id}i)s")
    watcher = watcher_of(idle, '/"', QUERY_STRING='"', HTTP_X_REQUEST_ID='"', REMOTE_ADDR='"')
    watcher.scope["raw_path"] = b'/"'
    idle.begin(watcher)

    assert idle.lines() == [r"\" GET /\"?\" HTTP/1.1 /\" \" \""]


THREADS = ("one thread", "another thread")


def test_a_record_has_all_that_logging_gives_it(idle, monkeypatch):
    """Any formatter works with it. Only its place in the code is not filled in, because it is the same for each line."""
    idle.cfg.set("access_log_format", "%(U)s")
    place = {"pathname", "filename", "module", "lineno", "funcName"}
    clock, real = itertools.count(1_700_000_000.0001, 0.25), worker.time.time

    def now() -> float:
        return next(clock) if threading.current_thread().name in THREADS else real()

    monkeypatch.setattr(worker.time, "time", now)
    monkeypatch.setattr(worker.time, "time_ns", lambda: int(now() * 10**9))  # logging's clock since Python 3.13

    def both() -> None:
        idle.begin(watcher_of(idle, "/page"))
        idle.log.access_log.info("%(U)s", {"U": "/page"})

    for name in THREADS:
        thread = threading.Thread(target=lambda: [both() for _ in range(3)], name=name)
        thread.start()
        thread.join(TIMEOUT)

    for ours, expected in zip(idle.records[::2], idle.records[1::2], strict=True):
        assert set(vars(ours)) == set(vars(expected))
        for attribute in set(vars(ours)) - place - {"args", "created", "msecs", "relativeCreated"}:
            assert getattr(ours, attribute) == getattr(expected, attribute), attribute
        assert ours.getMessage() == expected.getMessage() == "/page"
    times = [record.created for record in idle.records]
    assert times == pytest.approx([times[0] + 0.25 * number for number in range(12)], abs=0.001)
    for record in idle.records:
        assert record.msecs == pytest.approx(record.created % 1 * 1000, abs=1)
        assert record.msecs.is_integer()
        assert record.relativeCreated - idle.records[0].relativeCreated == pytest.approx(1000 * (record.created - times[0]), abs=1)
    assert [record.threadName for record in idle.records[::2]] == [name for name in THREADS for _ in range(3)]


def test_a_factory_of_records_makes_each_one(idle):
    """Tracing adds the trace of the request to each record. That of an earlier request would be wrong."""
    traces = iter(range(10))

    def factory(*args: Any, **options: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **options)
        record.trace = next(traces)
        return record

    logging.setLogRecordFactory(factory)
    try:
        for _ in range(3):
            idle.begin(watcher_of(idle))
    finally:
        logging.setLogRecordFactory(logging.LogRecord)

    assert [record.trace for record in idle.records] == [0, 1, 2]


def test_a_level_above_info_silences_the_access_log(idle):
    """A configuration of logging may set it."""
    idle.log.access_log.setLevel(logging.WARNING)
    idle.begin(watcher_of(idle))

    assert idle.lines() == []
