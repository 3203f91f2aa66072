"""The close of a lease. A write sends it and does not wait for its reply, which the thread reads before its next command."""

import gc
import os
from unittest.mock import Mock

import pytest
import redis
from django_redis import get_redis_connection

from housing.freshness import journal as journal_module
from housing.freshness.journal import ThreadConnection, journal


@pytest.fixture
def closes(monkeypatch):
    """The closes of leases that are on their way to Redis: functions that let them arrive. As long as there is a list, none arrives by itself."""
    held, ask = [], ThreadConnection.ask

    def hold(self, client, *command, late):
        if "close" not in command or late is None:
            return ask(self, client, *command, late=late)
        return held.append(lambda: ask(self, client, *command, late=late))

    monkeypatch.setattr(ThreadConnection, "ask", hold)
    return held


def test_a_write_does_not_wait_for_its_close_and_no_read_is_stale_until_it_arrives(home, warm, read, closes):
    """The lease is open until then. Waiting for the close would take a tenth of the time of a write."""
    warm()
    home.price = 4
    home.save()
    response = read("cached")
    assert (response.rows[0]["price"], response.came_from) == ("4.00", "fwd=miss; detail=leased")

    closes.pop()()
    assert read("cached").came_from == "fwd=stale; stored"


@pytest.fixture
def lost_closes(monkeypatch):
    """A list. While it holds an error, a close does not arrive, and the error is its late reply."""
    errors, ask, read_late = [], ThreadConnection.ask, journal_module._read_late

    def lose(self, client, *command, late):
        return ask(self, client, *command, late=late) if late is None or not errors else self.unread.append(late)

    def fail(connection, unread, **may_ask):
        def read_response():
            patched.undo()
            raise errors.pop()

        with monkeypatch.context() as patched:
            if errors:
                patched.setattr(connection, "read_response", read_response)
            read_late(connection, unread, **may_ask)

    monkeypatch.setattr(ThreadConnection, "ask", lose)
    monkeypatch.setattr(journal_module, "_read_late", fail)
    return errors


@pytest.mark.parametrize("error", [redis.exceptions.NoScriptError("NOSCRIPT"), redis.ConnectionError("reset by peer")])
def test_a_close_whose_reply_is_an_error_is_sent_again(home, warm, read, caplog, lost_closes, error):
    """The server may have restarted before it got the close. A second close changes nothing."""
    warm()
    lost_closes.append(error)
    home.save()
    caplog.clear()

    assert read("cached").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"
    assert lost_closes == caplog.messages == []


def test_a_close_without_a_reply_in_time_is_not_sent_again(home, warm, read, caplog, lost_closes):
    """Otherwise one read would wait twice for a Redis that hangs. The lease runs out."""
    warm()
    lost_closes.append(redis.TimeoutError("timed out"))
    home.save()
    caplog.clear()

    assert read("cached").came_from == "fwd=miss; detail=leased"
    [logged] = [message for message in caplog.messages if "lease" in message]
    assert logged.startswith("Committed, but the lease could not be closed: Redis at ")


def test_a_close_that_fails_twice_is_logged_once_at_the_next_command(home, warm, read, redis_unreachable, caplog):
    """The write has returned by then. Its readers query the database until the lease runs out."""
    warm()
    home.save()
    caplog.clear()

    with redis_unreachable():
        assert read("cached").came_from == "fwd=bypass; detail=unreachable"
        read("cached")

    logged = [message for message in caplog.messages if "lease" in message]
    assert len(logged) == 1
    assert logged[0].startswith("Committed, but the lease could not be closed: Redis at ")


def test_an_interrupt_while_a_late_reply_is_read_ends_the_connection(home, warm, read, monkeypatch):
    """Otherwise the next command would read the reply to the close."""
    warm()
    home.save()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(journal._line.connection, "read_response", Mock(side_effect=KeyboardInterrupt))
        read("cached")

    assert read("cached").came_from == "fwd=stale; stored"


@pytest.mark.parametrize("error", [None, redis.ConnectionError("reset by peer")], ids=["the reply", "no reply"])
def test_a_thread_that_ends_reads_the_reply_to_its_close_before_it_returns_its_connection(home, elsewhere, lost_closes, caplog, error):
    """The next thread would read it as the reply to its own command. A thread that has ended sends nothing again, but logs that the lease may be open."""
    caplog.clear()

    def write():
        lost_closes.extend([error] * bool(error))
        home.save()
        used.append((journal._line.connection, journal._line.unread))
        assert journal._line.unread

    used = []
    elsewhere(write)
    gc.collect()

    ((connection, unread),) = used
    assert unread == lost_closes == []
    assert connection not in get_redis_connection("default").connection_pool._in_use_connections
    logged = [message for message in caplog.messages if "lease" in message]
    assert len(logged) == bool(error)
    assert all(message.startswith("Committed, but the lease could not be closed: Redis did not confirm it (reset by peer).") for message in logged)


def test_a_forked_process_leaves_the_reply_to_a_close_to_its_parent(home, monkeypatch):
    """Both have the socket, but only one of them can read the reply."""
    home.save()
    unread = journal._line.unread
    assert len(unread) == 1

    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        journal.lookup("an entry")
    assert len(unread) == 1
