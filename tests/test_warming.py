"""Warming. A command fills the cache before the first reader comes, for example after a deploy."""

import re
import sys
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from housing.models import Property


@pytest.fixture
def warm_cache():
    """`warm_cache(…)`: run `manage.py warm_cache`, and return its output."""

    def warm_cache(*arguments, **options):
        output = StringIO()
        call_command("warm_cache", *arguments, stdout=output, **options)
        return output.getvalue()

    return warm_cache


def test_a_warmed_page_is_a_hit_for_its_first_reader(twenty_properties, warm_cache, read):
    """Without arguments, the command warms the first page of each ordering."""
    assert warm_cache() == "4 filled, 0 already warm, 0 not stored (written during the fill).\n"

    assert {read("cached", ordering=ordering).came_from for ordering in ("created_at", "-created_at", "price", "-price")} == {"hit"}
    assert read("cached").body == read("optimized").body


def test_the_given_pages_are_warmed_up_to_the_last(twenty_properties, warm_cache, read):
    """A list may have fewer pages than `--pages`."""
    assert warm_cache("?city=Springfield&page_size=8", "status=sold", pages=4).startswith("4 filled")
    assert warm_cache("page_size=8", pages=2).startswith("2 filled")

    second = read("cached", city="Springfield", page_size=8).json["next"]
    assert [read(f"cached{page}").came_from for page in ("?city=Springfield&page_size=8", second, "?status=sold", "")] == ["hit"] * 3 + ["fwd=miss; stored"]


def test_warming_again_costs_no_query(twenty_properties, warm_cache, queries):
    warm_cache()

    with queries.exactly(0, because="a warm page needs only a lookup in Redis"):
        assert warm_cache() == "0 filled, 4 already warm, 0 not stored (written during the fill).\n"


def test_warming_never_overwrites_newer_data(home, warm_cache, read, meanwhile):
    """The command fills entries as any reader does, and reads again if a write raced the fill."""

    def reprice():
        Property.objects.filter(pk=home.pk).update(price=1)

    with meanwhile(reprice):
        assert warm_cache("status=available").startswith("1 filled")
    assert read("cached", status="available").came_from == "hit"
    assert read("cached", status="available").body == read("optimized", status="available").body


def test_warming_reports_pages_that_a_write_kept_from_being_stored(home, warm_cache, around_commit):
    """The output must not claim that these pages are warm."""
    outputs = []
    with around_commit(before=lambda: outputs.append(warm_cache("status=available"))):
        home.save()

    assert outputs == ["0 filled, 0 already warm, 1 not stored (written during the fill).\n"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status=sold", "citty=Springfield"], "citty=Springfield: the list has no parameter citty. It has city, status, "),
        (["status=gone"], "status=gone: status: Select a valid choice. gone is not one of the available choices."),
        (["--pages=0"], "--pages is 0. It must be a whole number, at least 1."),
    ],
)
def test_an_invalid_page_is_reported_before_any_page_is_read(twenty_properties, warm_cache, queries, arguments, complaint):
    with queries.exactly(0, because="all arguments are checked before the first page"), pytest.raises(CommandError, match=f"^{re.escape(complaint)}"):
        warm_cache(*arguments)


def test_warming_reports_that_redis_is_unreachable(twenty_properties, warm_cache, redis_unreachable):
    """Without Redis, warming would only read from the database."""
    with redis_unreachable(), pytest.raises(CommandError, match=r"^Redis is unreachable, so nothing was cached\. Check REDIS_URL\.$"):
        warm_cache()


def test_warming_reports_an_error_of_the_database(twenty_properties, warm_cache):
    """An operator needs the database's message, not a traceback."""

    def refuse(*_):
        raise OperationalError("the database is shutting down")

    with connection.execute_wrapper(refuse), pytest.raises(CommandError, match=r"^Database error: the database is shutting down$"):
        warm_cache()


def test_an_interrupted_warming_leaves_the_filled_pages_warm_and_the_others_cold(twenty_properties, warm_cache, read):
    """The spec presses Ctrl-C at the third page. The next read of that page is a normal miss."""
    executed = 0

    def interrupt(execute, *statement):
        nonlocal executed
        executed += 1
        if executed == 3:
            raise KeyboardInterrupt
        return execute(*statement)

    with connection.execute_wrapper(interrupt), pytest.raises(KeyboardInterrupt):
        warm_cache("page_size=1", "page_size=2", "page_size=3", "page_size=4")

    assert [read("cached", page_size=size).came_from for size in (1, 2, 3, 4)] == ["hit"] * 2 + ["fwd=miss; stored"] * 2


def test_warming_shows_its_progress_in_a_terminal(twenty_properties, warm_cache, monkeypatch):
    """With many pages, the command takes minutes."""
    monkeypatch.setattr(sys, "stderr", terminal := StringIO())
    terminal.isatty = lambda: True
    warm_cache("page_size=5", pages=4)

    assert "4/4" in terminal.getvalue()


def test_quiet_warming_prints_nothing(twenty_properties, warm_cache, capsys):
    """A cron job should send mail only about errors."""
    assert warm_cache(verbosity=0) == ""
    assert capsys.readouterr() == ("", "")
