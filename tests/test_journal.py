"""Crashes, lost data, clocks and restarts. The journal survives them: responses may be slower, but never stale.

T1, T2, … are processes. Below each table are the steps that its specs take, as they were recorded.
"""

import re

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django_redis import get_redis_connection
from redis.exceptions import ConnectionError as RedisConnectionError

from housing.freshness.fingerprint import version
from housing.freshness.journal import Hit, Miss, journal, script
from housing.freshness.management.commands.leases import Command
from housing.freshness.settings import conf
from tests.fixtures.cache import entries, flush
from tests.fixtures.processes import Killed, die

PAGE, ANOTHER = cache.make_key("page"), cache.make_key("another page")


def evict_the_journal():
    get_redis_connection("default").delete(cache.make_key("journal"))


# A process is killed


@pytest.mark.only("embedded")
def test_a_page_is_warm_again_after_the_lease_of_a_writer_killed_before_its_commit(reprice, price, around_commit, redis_clock, settings):
    """Until its lease runs out, nobody can know that nothing was written. (Embedded only: the spec sets Redis's clock.)"""
    price()
    with pytest.raises(Killed), around_commit(before=die):
        reprice(1)
    assert price() == ("300000.00", "fwd=miss; detail=leased")
    redis_clock.seconds += conf.LEASE + 1
    assert price() == ("300000.00", "fwd=stale; stored")
    assert price() == ("300000.00", "hit")


@pytest.mark.only("embedded")
def test_a_write_is_not_missed_if_its_writer_is_killed_between_commit_and_close(reprice, price, around_commit, redis_clock, settings):
    """The end of the lease counts as its close. (Embedded only: the spec sets Redis's clock.)"""
    price()
    with pytest.raises(Killed), around_commit(after=die):
        reprice(1)
    assert price() == ("1.00", "fwd=miss; detail=leased")
    redis_clock.seconds += conf.LEASE + 1
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")


def test_a_fill_between_lease_and_commit_is_not_served_if_the_writer_is_killed_after_its_commit(reprice, price, around_commit):
    """If it were stored, clients would get the old price although the new one is committed."""
    filled = []
    with pytest.raises(Killed), around_commit(before=lambda: filled.append(price()), after=die):
        reprice(1)
    assert filled == [("300000.00", "fwd=miss; detail=leased")]
    assert [price() for _ in range(2)] == [("1.00", "fwd=miss; detail=leased")] * 2


def test_a_fill_between_lease_and_commit_is_not_stored_after_the_writer_is_killed(home, reprice, price, around_commit, monkeypatch):
    """The fill read the old price, and the lease stays open because the killed writer cannot close it."""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    fills = []
    with pytest.raises(Killed), around_commit(before=lambda: fills.append(journal.lookup(PAGE)), after=die):
        reprice(1)
    [fill] = fills
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "leased"
    assert price() == ("1.00", "fwd=miss; detail=leased")


@pytest.mark.only("embedded")
def test_a_fill_between_lease_and_commit_is_not_stored_after_the_lease_of_the_killed_writer_has_run_out(
    home, reprice, price, around_commit, redis_clock, monkeypatch
):
    """It read the old price. (Embedded only: the spec sets Redis's clock.)"""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    fills = []
    with pytest.raises(Killed), around_commit(before=lambda: fills.append(journal.lookup(PAGE)), after=die):
        reprice(1)
    redis_clock.seconds += conf.LEASE + 1
    [fill] = fills
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "leased"
    assert price()[0] == "1.00"
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "raced"
    assert price()[0] == "1.00"


@pytest.mark.only("embedded")
def test_a_read_under_a_lease_is_not_stored_after_the_lease_has_run_out(home, redis_clock, settings):
    """The COMMIT may have come after the read. (Embedded only: the spec sets Redis's clock.)"""
    journal.lease({"t"})
    miss = journal.lookup(PAGE)
    redis_clock.seconds += conf.LEASE + 1
    journal.lookup(ANOTHER)
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"new"', b"new") == "stored"


@pytest.mark.only("embedded")
@pytest.mark.parametrize("begin", [lambda: journal.lease({"t"}), lambda: evict_the_journal() or journal.lookup(ANOTHER)], ids=["a lease", "a recovering lease"])
def test_a_read_at_the_instant_at_which_a_lease_runs_out_is_not_stored(home, redis_clock, settings, begin):
    """The COMMIT may be of that instant, so a tie counts as stale, before and after the expiry is recorded. (Embedded only: the spec sets Redis's clock.)"""
    redis_clock.seconds = round(redis_clock.seconds) + 1
    begin()
    redis_clock.seconds += conf.LEASE
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") in ("leased", "recovering")
    for settle in (lambda: journal.lookup(ANOTHER), lambda: journal.close(journal.lease({"u"}))):
        settle()
        assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"e"', b"e") == "stored"


@pytest.mark.only("embedded")
def test_a_lease_that_ran_out_does_not_hide_a_later_close(home, redis_clock, settings):
    """The record of the newer close must stay. (Embedded only: the spec sets Redis's clock.)"""
    journal.lease({"t"})
    redis_clock.seconds += conf.LEASE + 1
    journal.close(journal.lease({"t"}))
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    journal.close(journal.lease({"t"}))
    journal.lease({"u"})
    redis_clock.seconds += conf.LEASE + 1
    assert isinstance(journal.lookup(PAGE), Miss)


# Open leases


@pytest.fixture
def leases(capsys):
    """The lines that `manage.py leases` prints."""

    def leases():
        call_command("leases")
        return capsys.readouterr().out.splitlines()

    return leases


def test_the_leases_command_lists_the_open_leases(leases):
    """A response is not stored while a lease on its tags is open. The list shows whose COMMIT the page waits for."""
    assert leases() == ["No lease is open."]
    first, second = journal.lease({"agent:1", "agent.office"}), journal.lease({"office:2"})
    assert [line.split()[0] for line in leases()] == [first.id, second.id]
    assert leases()[0].endswith(" s left  agent.office, agent:1")
    journal.close(first)
    assert [line.split()[0] for line in leases()] == [second.id]
    journal.withdraw(second)
    assert leases() == ["No lease is open."]


def test_the_leases_command_changes_nothing(leases):
    """It neither takes an instant nor creates a journal."""
    journal.lease({"t"})
    key = cache.make_key("journal")
    before = get_redis_connection("default").dump(key)
    leases()
    assert get_redis_connection("default").dump(key) == before
    evict_the_journal()
    assert leases() == ["No lease is open."]
    assert get_redis_connection("default").exists(key) == 0


@pytest.mark.only("embedded")
def test_the_remaining_time_of_a_lease_is_exact_to_the_microsecond(redis_clock, settings):
    """Embedded only: the spec sets Redis's clock."""
    redis_clock.seconds += 1  # since the journal was created
    lease = journal.lease({"t", "u"})
    redis_clock.seconds += 2
    assert journal.leases() == {lease: conf.LEASE - 2}


@pytest.mark.only("embedded")
def test_the_lease_of_a_killed_process_is_listed_until_it_runs_out(reprice, around_commit, leases, redis_clock, settings):
    """No later read or write records that the lease is over, but it is no longer listed. (Embedded only: the spec sets Redis's clock.)"""
    with pytest.raises(Killed), around_commit(before=die):
        reprice(1)
    redis_clock.seconds += conf.LEASE - 1.5
    [line] = leases()
    assert "  1.5 s left  " in line
    redis_clock.seconds += 1.4
    [line] = leases()
    assert "  0.1 s left  " in line
    redis_clock.seconds -= 1  # the clock steps back, so the lease lasts longer
    [line] = leases()
    assert "  1.1 s left  " in line
    redis_clock.seconds += 1
    redis_clock.seconds += 0.2
    assert leases() == ["No lease is open."]


@pytest.mark.only("embedded")
def test_a_lease_from_before_a_restart_of_the_server_is_not_listed(leases, run_id):
    """The old journal is no longer used. The next reader creates a new one, which begins with a lease on everything. (Embedded only: the spec sets the
    server's run ID.)
    """
    journal.lease({"t"})
    assert len(leases()) == 1
    run_id("b")
    journal.lease({"t"})
    run_id("c")
    assert leases() == ["No lease is open."]


@pytest.mark.only("embedded")
def test_the_lease_of_a_recovering_journal_is_listed_as_a_lease_on_everything(leases, redis_clock):
    """Embedded only: the spec sets Redis's clock."""
    evict_the_journal()
    journal.lookup(PAGE)
    assert leases() == ["recovering  5.0 s left  everything, because the journal is new and a running writer may not know it"]


def test_the_leases_command_fails_with_one_line_if_redis_is_unreachable(redis_unreachable, capsys):
    """It exits with 1, so that a script can notice."""
    with redis_unreachable(), pytest.raises(SystemExit) as ended:
        Command().run_from_argv(["manage.py", "leases"])

    assert ended.value.code == 1
    assert re.fullmatch(r"CommandError: Redis at \S+ is unreachable \(.*\)\.\n", capsys.readouterr().err)


# Redis loses data


@pytest.mark.only("embedded")
@pytest.mark.parametrize("lose", [evict_the_journal, flush])
def test_no_read_is_stored_after_the_journal_is_lost_during_a_write(reprice, price, around_commit, redis_clock, verify, lose):
    """A new journal begins with a lease on everything, which lasts as long as a lost one. (Embedded only: the spec sets Redis's clock.)"""
    price()
    seen = []

    def lose_and_read():
        lose()
        seen.extend([price(), price()])

    with around_commit(before=lose_and_read):
        reprice(1)
    assert seen == [("300000.00", "fwd=miss; detail=recovering")] * 2
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    redis_clock.seconds += conf.LEASE + 1
    verify()
    assert price()[0] == "1.00"
    assert price() == ("1.00", "hit")


@pytest.mark.parametrize("lose", [evict_the_journal, flush])
def test_no_entry_is_trusted_after_a_writer_is_killed_and_the_journal_is_lost(reprice, price, around_commit, lose):
    """Entries that are still in Redis belong to the lost journal, so none of them is trusted."""
    price()
    with pytest.raises(Killed), around_commit(after=die):
        reprice(1)
    lose()
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_an_entry_of_a_lost_journal_is_not_trusted_even_if_the_clock_steps_back(reprice, price, redis_clock, verify):
    """The entry's instant is later than all instants of the new
    journal, so only the epoch shows that it is old. (Embedded only: the spec sets Redis's clock.)
    """
    price()
    reprice(1)
    evict_the_journal()
    redis_clock.seconds -= 3 * conf.LEASE
    price()
    redis_clock.seconds += conf.LEASE + 1
    verify()
    assert price()[0] == "1.00"
    assert price() == ("1.00", "hit")  # the old entry was replaced, although its instant is later


@pytest.mark.only("embedded")
def test_a_fill_that_began_before_the_journal_was_lost_is_not_stored(home, redis_clock, settings):
    """The writes in between are not known. (Embedded only: the spec sets Redis's clock.)"""
    miss = journal.lookup(PAGE)
    evict_the_journal()
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"
    redis_clock.seconds -= 3 * conf.LEASE
    journal.lookup(ANOTHER)
    redis_clock.seconds += conf.LEASE + 1
    journal.lookup(ANOTHER)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"


@pytest.mark.parametrize("entry", [0, 1])
def test_an_evicted_entry_is_read_again(home, warm, read, entry):
    """Redis may evict any entry at any time."""
    warm()
    warm(f"cached/{home.pk}")
    get_redis_connection("default").delete(sorted(entries())[entry])

    assert sorted(read(page).came_from for page in ("cached", f"cached/{home.pk}")) == ["fwd=miss; stored", "hit"]


@pytest.mark.only("embedded")
def test_a_read_from_before_the_oldest_kept_record_is_not_stored(home, redis_clock, settings):
    """The record of the write is dropped after a TTL, so nothing says any longer that the read is old. (Embedded only: the spec sets Redis's clock.)"""
    miss = journal.lookup(PAGE)
    journal.close(journal.lease({"t"}))
    redis_clock.seconds += conf.TTL + 1
    journal.close(journal.lease({"u"}))
    assert get_redis_connection("default").zscore(cache.make_key("journal"), "t") is None
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"


@pytest.mark.only("embedded")
def test_the_journal_keeps_only_what_was_written_within_a_ttl(home, redis_clock, settings):
    """Otherwise it would grow with every write. Every other writer of this spec is killed, because a lease that ran out becomes a record, too. (Embedded
    only: the spec sets Redis's clock.)
    """
    for number in range(50):
        lease = journal.lease({f"agent:{number}"})
        if number % 2:  # every other writer is killed
            journal.close(lease)
        redis_clock.seconds += conf.TTL / 10

    assert get_redis_connection("default").zcount(cache.make_key("journal"), 0, "+inf") < 16


# Redis's clock


@pytest.mark.only("embedded")
def test_a_write_is_not_missed_if_the_clock_steps_back_a_little(reprice, price, redis_clock, verify):
    """Instants never decrease, so a write cannot look older than a read
    before it. (Embedded only: the spec sets Redis's clock.)
    """
    price()
    redis_clock.seconds -= 1
    reprice(1)
    assert price() == ("1.00", "fwd=stale; stored")
    verify()
    assert price() == ("1.00", "hit")


@pytest.mark.only("embedded")
def test_a_clock_that_steps_back_by_more_than_a_lease_begins_a_new_journal(home, reprice, price, redis_clock, verify):
    """In the old journal no lease
    would run out before the clock has caught up. (Embedded only: the spec sets Redis's clock.)
    """
    home.agent.save()
    price()
    redis_clock.seconds -= 3 * conf.LEASE
    reprice(1)
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    redis_clock.seconds += conf.LEASE + 1
    verify()
    price()
    assert price() == ("1.00", "hit")


@pytest.mark.only("embedded")
def test_a_clock_that_steps_back_keeps_no_reader_waiting(home, redis_clock):
    """The older fill seems to begin in an hour, and must not count as running until then. (Embedded only: the spec sets Redis's clock.)"""
    older = journal.lookup(PAGE)
    redis_clock.seconds -= 3600
    assert not journal.renew(PAGE, older)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


@pytest.mark.only("embedded")
def test_two_events_in_the_same_microsecond_have_different_instants(reprice, price, redis_clock):
    """The page is stored, written and read again while the clock stands still. (Embedded only: the spec sets Redis's clock.)"""
    for new in range(1, 4):
        price()
        reprice(new)
        assert price() == (f"{new}.00", "fwd=stale; stored")
        assert price() == (f"{new}.00", "hit")


# Redis restarts


@pytest.fixture
def run_id(monkeypatch, settings):
    """Set the server's run ID: `run_id("b")` restarts it with its data.

    With `after_info` it restarts after its next reply to INFO. A connection ends with its server.
    """
    from fakeredis import FakeRedisConnection

    send, receive, runs, next_runs = FakeRedisConnection.send_command, FakeRedisConnection.read_response, ["a"], []
    due, reported = set(), {}

    def send_command(self, *args, **kwargs):
        if args[0] == "INFO":
            due.add(self)
        elif args[0] == "SCRIPT" and reported.get(self, runs[-1]) != runs[-1]:
            raise RedisConnectionError("Connection reset by peer")
        else:
            send(self, *args, **kwargs)

    def read_response(self, *args, **kwargs):
        if self not in due:
            return receive(self, *args, **kwargs)
        due.discard(self)
        reported[self] = runs[-1]
        if next_runs:
            restart(next_runs.pop())
        return f"# Server\r\nredis_version:7.0.15\r\nrun_id:{reported[self]}\r\n".encode()

    def restart(run, after_info=False):
        if after_info:
            next_runs.append(run)
        else:
            runs.append(run)
            get_redis_connection("default").script_flush()

    monkeypatch.setattr(FakeRedisConnection, "send_command", send_command)
    monkeypatch.setattr(FakeRedisConnection, "read_response", read_response)
    settings.FRESHNESS_RUN_ID = None
    journal.forget_server()
    journal.begin()
    yield restart
    journal.forget_server()


@pytest.mark.only("embedded")
def test_a_server_that_restarts_with_its_data_begins_cold(price, run_id, verify):
    """The data may come from a dump that is older than the last write. (Embedded only: the spec sets the server's run ID.)"""
    verify()
    price()
    assert price() == ("300000.00", "hit")
    run_id("b")
    assert price() == ("300000.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_a_server_that_lost_only_its_scripts_stays_warm(price, run_id, verify):
    """The run ID is the same, so the script is loaded again and the entries are still trusted. (Embedded only: the spec sets the server's run ID.)"""
    verify()
    price()
    run_id("a")
    assert price() == ("300000.00", "hit")


@pytest.mark.only("embedded")
def test_the_script_is_loaded_by_the_server_whose_run_id_it_contains(run_id, monkeypatch):
    """INFO and SCRIPT LOAD go over one connection, which would end with the server. No further connection stays borrowed. (Embedded only: the spec sets the
    server's run ID.)
    """
    pool = get_redis_connection("default").connection_pool
    sent, send = [], pool.connection_class.send_command

    def note(self, *command, **options):
        sent.append((self, command))
        send(self, *command, **options)

    monkeypatch.setattr(pool.connection_class, "send_command", note)
    used = len(pool._in_use_connections)

    journal.forget_server()
    journal.begin()

    (first, info), (second, load) = [(connection, command) for connection, command in sent if command[0] in ("INFO", "SCRIPT")]
    assert (info, load) == (("INFO",), ("SCRIPT", "LOAD", script("a")))
    assert first is second
    assert len(pool._in_use_connections) == used


@pytest.mark.only("embedded")
def test_a_restart_leaks_no_connection(home, price, run_id, monkeypatch):
    """Otherwise the pool would be empty after some restarts. One connection per thread is enough. (Embedded only: the spec sets the server's run ID.)"""
    monkeypatch.setattr(get_redis_connection("default").connection_pool, "max_connections", 1)
    for number in range(20):
        run_id(f"b{number}")
        assert price() == ("300000.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_a_restart_between_info_and_script_load_is_noticed(home, price, run_id):
    """SCRIPT LOAD goes over the connection of INFO, which ends with its server. So the old run ID never reaches the new server. (Embedded only: the spec
    sets the server's run ID.)
    """
    price()
    journal.forget_server()  # a new process
    run_id("b", after_info=True)
    assert price() == ("300000.00", "fwd=miss; detail=recovering")


# A command runs twice


def test_every_command_may_run_twice(home):
    """A client that lost its connection cannot know whether a command ran, so it sends it again."""
    lease = journal.lease({"t"})
    journal._run("lease", lease.id, *lease.tags, version(), "", "", "", "", "")
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "leased"
    journal.close(lease)
    journal.close(lease)
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    journal.withdraw(lease)
    journal.withdraw(lease)
    assert journal.lookup(PAGE) == Hit('"e"', b"e")


NOT_PROMISED = {
    "A replica of the database or of Redis is fresh": "A replica lags behind by an unknown time. The service reads one primary of each.",
    "A failover of Redis loses nothing": "The new primary may lack the last lease, and cannot know that.",
    "A COMMIT is safe if it outlasts its lease and its process is killed before the close": "Readers rely on the lease alone. "
    "FRESHNESS_LEASE is longer than a COMMIT takes on a bad day.",
}
