"""Servers that cannot keep the promise. Each is refused with the reason at first use, by `check --deploy` and in /health/.

Reads are then served from the database as if Redis were unreachable, and writes get no lease. A second later the server is checked again.
"""

import re
import threading
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import redis
from django.core import checks
from django.core.cache import cache
from django_redis import get_redis_connection

from housing.freshness import operations
from housing.freshness.journal import SCRIPT, Miss, Refused, Unreachable, journal
from housing.freshness.servers import COMMANDS, SCRIPTED, SENT, parsed
from tests.fixtures.cache import begin_journal
from tests.fixtures.processes import any_free_port
from tests.fixtures.stub import Stub, info, valkey
from tests.stacks import OwnRedis

PAGE = cache.make_key("page")


@pytest.fixture
def clock(monkeypatch, settings):
    """The clock by which a refusal lasts, which is a second; `clock.seconds += 1` sets it forward."""

    class Clock:
        seconds = 0.0

    clock = Clock()
    settings.FRESHNESS_RETRY = 1.0
    monkeypatch.setattr("housing.freshness.breaker.monotonic", lambda: clock.seconds)
    return clock


@pytest.fixture
def new_stub():
    """`new_stub()`: start a stub, which ends with the spec."""
    with ExitStack() as stubs:

        def new_stub():
            stub = stubs.enter_context(Stub())
            thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.001})
            thread.start()
            stubs.callback(thread.join)
            stubs.callback(stub.shutdown)
            return stub

        yield new_stub


@pytest.fixture
def stub(new_stub, settings, as_the_cache):
    """A stub as the service's cache."""
    settings.FRESHNESS_RUN_ID = None
    stub = new_stub()
    as_the_cache(OwnRedis(f"redis://{stub.address}/0", bool))
    yield stub
    get_redis_connection("default").connection_pool.disconnect()


def check_results(what, **options):
    """The results of the check with this ID, as (message, hint)."""
    return [(message.msg, message.hint) for message in checks.run_checks(include_deployment_checks=True, **options) if message.id == f"freshness.{what}"]


OLD = "before Redis 7.0 a script survives a restart and a failover, and an old dump looks like the current data."
MUTE = "its INFO lacks the run_id or the version, so an old dump looks like the current data."
CLUSTER = "it is a cluster, in which the journal and the entries are on several nodes."
REPLICA = "it is a replica, which lags behind another server and takes no lease."
NEWER, HAS_BOTH = "Use Redis 7.0 or newer, or Valkey 7.2 or newer.", "Use a server whose INFO has both."

REFUSED = {
    "Redis 6.2": (info("6.2.14"), "Redis 6.2.14", OLD, NEWER),
    "Redis 6.0": (info("6.0.20"), "Redis 6.0.20", OLD, NEWER),
    "an older Valkey": (valkey("7.1.9"), "Valkey 7.1.9", OLD, NEWER),
    "no run_id": (info(run_id=None), "Redis 8.0.6", MUTE, HAS_BOTH),
    "an empty run_id": (info(run_id=""), "Redis 8.0.6", MUTE, HAS_BOTH),
    "no version": (info(None), "Redis", MUTE, HAS_BOTH),
    "no INFO": (None, "Redis", MUTE, HAS_BOTH),
    "a cluster": (info(redis_mode="cluster"), "Redis 8.0.6", CLUSTER, "Use a server without cluster-enabled."),
    "a cluster of Valkey": (valkey(server_mode="cluster"), "Valkey 9.1.2", CLUSTER, "Use a server without cluster-enabled."),
    "a replica": (info(role="slave"), "Redis 8.0.6", REPLICA, "Use the primary's address."),
    "a replica of Valkey": (valkey(role="slave"), "Valkey 9.1.2", REPLICA, "Use the primary's address."),
}


@pytest.fixture(params=REFUSED)
def refused(request, stub):
    """A stub that cannot keep the promise. Returns its name and address with the reason, and the remedy."""
    fields, name, why, remedy = REFUSED[request.param]
    if fields is None:
        stub.replies["INFO"] = b"-ERR unknown command 'INFO'\r\n"
    else:
        stub.info = fields
    return f"{name} at {stub.address} cannot keep the promise: {why}", remedy


def test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use(stub, refused):
    """Redis 6.2 writes the script with the run ID in it to its AOF, and replicates it. So a restart from an AOF without the last write, or a failover to a
    lagging replica, would look like the same server.
    """
    for act in (lambda: journal.lookup(PAGE), lambda: journal.lease({"t"}), journal.leases, journal.begin):
        with pytest.raises(Refused) as error:
            act()
        assert str(error.value) == " ".join(refused)
        assert isinstance(error.value, Unreachable), "its callers handle Unreachable"
    assert set(stub.commands) == {"INFO"}


def test_a_read_bypasses_a_server_that_cannot_keep_the_promise(twenty_properties, stub, refused, read, caplog):
    """It is served from the database, and the log says why."""
    assert read("cached").body == read("optimized").body
    assert read("cached").came_from == "fwd=bypass; detail=unreachable"
    assert caplog.messages == [f"Served from the database: {' '.join(refused)}"] * 2


def test_check_deploy_refuses_a_server_that_cannot_keep_the_promise(stub, refused):
    """A deployment can stop before the first request."""
    assert check_results("E005") == [refused]


@pytest.mark.django_db
def test_the_health_endpoint_says_why_a_server_is_refused(client, stub, refused):
    """Its status is 200, because every read still gets a response. It is for everybody, so it shows no address."""
    response = client.get("/health/")

    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert response.json()["cache"] == f"refused: {refused[0].partition('cannot keep the promise: ')[2].rstrip('.')}"
    assert stub.address not in response.text


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields",
    [info("7.0.0"), info("7.4.2"), info("10.0.1"), valkey("7.2.5"), valkey("9.1.2")],
    ids=["Redis 7.0.0", "Redis 7.4.2", "Redis 10.0.1", "Valkey 7.2.5", "Valkey 9.1.2"],
)
def test_a_server_that_can_keep_the_promise_is_used(client, stub, fields):
    """The checks and the health endpoint have no objection either."""
    stub.info = fields

    assert isinstance(journal.lookup(PAGE), Miss)
    assert check_results("E005") == check_results("W002") == []
    assert client.get("/health/").json()["cache"] == "ok"


def test_a_value_of_info_may_have_colons():
    """Redis on Windows has a path with a drive as its `executable`."""
    assert parsed("# Server\r\nexecutable:C:\\redis:1\\redis-server.exe\r\nconfig_file:\r\n") == {
        "executable": r"C:\redis:1\redis-server.exe",
        "config_file": "",
    }


def test_a_server_whose_info_fails_is_unreachable(stub):
    """Only "unknown command" means that the server has no INFO. Any other error may pass, so the server is not refused by name."""
    stub.replies["INFO"] = b"-ERR INFO fails on purpose\r\n"

    with pytest.raises(Unreachable, match="INFO fails on purpose") as error:
        journal.lookup(PAGE)
    assert not isinstance(error.value, Refused)


def test_only_the_first_use_asks_for_info(stub):
    """Every later call is one round trip."""
    stub.info = info()
    journal.lookup(PAGE)
    journal.lookup(PAGE)

    assert stub.commands == ["INFO", "SCRIPT", "EVALSHA", "EVALSHA", "EVALSHA"]  # the first of the three asks for permissions


def test_a_replica_that_is_promoted_is_used_without_restarting_the_service(stub, clock):
    """A refused server is checked again after a second, over a new connection. Until then a read makes no round trip to it."""
    stub.info = info(role="slave")
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    stub.info = info()
    clock.seconds += 0.999
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    assert stub.commands == ["INFO"]

    clock.seconds += 0.001
    assert isinstance(journal.lookup(PAGE), Miss)
    assert len(stub.sockets) == 2


def test_the_health_endpoint_and_check_deploy_ask_a_refused_server_at_once(client, db, stub):
    """An operator who has just corrected the server wants to see the result, and then the server is used at once."""
    stub.info = info(role="slave")
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    stub.info = info()

    assert client.get("/health/").json()["cache"] == "ok"
    assert check_results("E005") == []
    assert isinstance(journal.lookup(PAGE), Miss)


def test_a_primary_that_becomes_a_replica_is_refused_after_the_first_error(stub):
    """Its READONLY error may come from another server at the same address, so the next call asks for INFO."""
    stub.info = info()
    journal.lookup(PAGE)
    stub.info, stub.script_replies["lookup"] = info(role="slave"), b"-READONLY You can't write against a read only replica.\r\n"
    with pytest.raises(Unreachable, match="read only replica"):
        journal.lookup(PAGE)

    with pytest.raises(Refused, match="it is a replica"):
        journal.lookup(PAGE)


def test_a_server_behind_a_new_connection_is_checked_again(stub):
    """A failover cuts the connections. Afterwards the address leads to another server, or to the same server as a replica."""
    stub.info = info()
    journal.lookup(PAGE)
    stub.info = info(role="slave")
    stub.cut()

    with pytest.raises(Refused, match="it is a replica"):
        journal.lookup(PAGE)


def test_a_thread_that_gets_no_connection_does_not_keep_the_one_that_it_returned(redis_unreachable):
    """Another thread may have it by now, and the two would read each other's replies."""
    journal.lookup(PAGE)
    with redis_unreachable():
        for _ in range(2):
            with pytest.raises(Unreachable):
                journal.lookup(PAGE)
        assert journal._line.connection is None


# The primary that Sentinel names


class Sentinel(NamedTuple):
    """A stub of a sentinel. `name(server)` lets it name this stub as the primary of the service."""

    stub: Stub

    def name(self, *servers):
        states = [{"name": "Housing", "ip": server.server_address[0], "port": server.server_address[1], "flags": "master"} for server in servers]
        states = [state | {"num-other-sentinels": 2} for state in states]
        replies = [b"%%%d\r\n" % len(state) + b"".join(b"+%b\r\n" % str(part).encode() for pair in state.items() for part in pair) for state in states]
        self.stub.replies["SENTINEL"] = b"*%d\r\n" % len(states) + b"".join(replies)


@pytest.fixture
def sentinel(new_stub, stub, as_the_cache):
    """A sentinel that names `stub`, and another one that nobody can reach, as the service's cache."""
    sentinel = Sentinel(new_stub())
    sentinel.name(stub)
    as_the_cache(OwnRedis(f"redis+sentinel://:s3cr3t@127.0.0.1:{any_free_port()},{sentinel.stub.address}/Housing?sentinel_password=s3cr3t", bool))
    yield sentinel
    get_redis_connection("default").connection_pool.disconnect()


@pytest.fixture(params=["cut", "demoted"])
def failover(request, new_stub, stub, sentinel):
    """`failover()`: the sentinels name another server from now on, which it returns. The connections to the old one are cut, or it replies as a replica."""

    def failover():
        new = new_stub()
        new.info = info(run_id="another")
        sentinel.name(new)
        if request.param == "cut":
            stub.cut()
        else:
            stub.script_replies["lookup"] = b"-READONLY You can't write against a read only replica.\r\n"
        return new

    stub.info = info()
    return failover


def test_after_a_failover_the_next_call_uses_the_new_primary(stub, failover):
    """It asks the sentinels, checks the new server, and loads the script there. The run id in the script is that of the new server."""
    assert isinstance(journal.lookup(PAGE), Miss)
    before = journal._sha
    new = failover()
    stub.commands.clear()

    assert isinstance(journal.lookup(PAGE), Miss)
    assert new.commands == ["INFO", "SCRIPT", "EVALSHA", "EVALSHA"]
    assert set(stub.commands) <= {"EVALSHA"}
    assert journal._sha != before


def test_a_message_has_the_address_of_the_primary_that_the_sentinels_named(stub, sentinel):
    """The reason may be a server that was promoted a moment ago."""
    stub.info = info(role="slave")

    with pytest.raises(Refused, match=f"^Redis 8.0.6 at {stub.address} cannot keep the promise: it is a replica"):
        journal.lookup(PAGE)


def test_without_a_primary_the_message_has_the_name_of_the_service_and_no_password(sentinel):
    """All servers may be down, or REDIS_URL has another name than the sentinels."""
    sentinel.name()

    with pytest.raises(Unreachable) as error:
        journal.lookup(PAGE)
    assert str(error.value).startswith("Redis at the address that the sentinels have for 'Housing' is unreachable (No master found for 'Housing'")
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(("with_sentinels", "replicas", "warnings"), [(True, None, 1), (True, 1, 0), (False, None, 0)])
def test_check_deploy_warns_if_a_replaced_primary_would_accept_writes(request, stub, with_sentinels, replicas, warnings):
    """After a failover a process may still reach the old primary. INFO has the number of replicas in sync if min-replicas-to-write is set."""
    if with_sentinels:
        request.getfixturevalue("sentinel")
    stub.info = info(min_slaves_good_slaves=replicas)

    assert [hint for _, hint in check_results("W010")] == warnings * [
        "Set min-replicas-to-write to 1 on every server that Sentinel watches, and min-replicas-max-lag below down-after-milliseconds."
    ]


@pytest.mark.parametrize(("limit", "warnings"), [(0, 1), (1_000_000, 0)])
def test_check_deploy_asks_for_a_limit_of_memory(stub, limit, warnings):
    """Without one, entries may take all of the machine's memory."""
    stub.info = info(maxmemory=limit)

    assert len(check_results("W011")) == warnings


# The permissions of its user


def test_the_listed_commands_for_an_acl_are_those_that_the_script_runs_and_those_that_the_service_sends(stub):
    """A missing command would break a service that follows the list, and a needless one would be a needless permission."""
    stub.info = info()
    journal.lookup(PAGE)

    assert {command.lower() for command in re.findall(r"\bcall\('(\w+)'", SCRIPT)} == set(SCRIPTED)
    assert {command.lower() for command in stub.commands} == {command.partition("|")[0] for command in SENT}


@pytest.mark.only("real")
def test_the_permissions_of_whole_commands_are_checked(own_redis):
    """Newer servers raise an error if the check of a command has too few arguments, and the service would take them for unreachable. (Real only: fakeredis
    does not know how many arguments a command needs.)
    """
    own_redis()
    known = get_redis_connection("default").command()
    assert {command: abs(known[command]["arity"]) - 1 for command in SCRIPTED} == SCRIPTED


def test_a_user_who_may_not_run_the_script_is_refused_with_the_rules_to_set(stub):
    """If the user lacked a single command, the script could fail half way."""
    stub.info, stub.script_replies["forbidden"] = valkey(), b"*2\r\n+zadd\r\n+zrem\r\n"
    with pytest.raises(Refused) as error:
        journal.lookup(PAGE)

    assert str(error.value) == (
        f"Valkey 9.1.2 at {stub.address} cannot keep the promise: its user lacks a permission (it may not run zadd, zrem). "
        f"Allow it ~{cache.make_key('*')} +info +script|load +evalsha +del +hdel +hget +hmget +hset +pexpire +time +zadd +zmscore "
        "+zrangebyscore +zrem +zremrangebyscore"
    )
    assert check_results("E005") == [(error.value.reason, error.value.remedy)]
    stub.script_replies["forbidden"] = b"*0\r\n"
    assert check_results("E005") == []


@pytest.mark.parametrize(
    "reply",
    [b"-NOPERM No permissions to access a key\r\n", b"-ERR ACL failure in script: User app has no permissions to run the 'zrem' command\r\n"],
    ids=["of a key", "of a command"],
)
def test_a_permission_that_is_revoked_later_is_refused_with_the_rules_to_set(stub, reply):
    """The same rules are the remedy for an error in the middle of a run."""
    stub.info = info()
    journal.lookup(PAGE)
    stub.script_replies["lookup"] = reply

    with pytest.raises(Refused, match=r"its user lacks a permission \(.*\)\. Allow it ~"):
        journal.lookup(PAGE)


@pytest.fixture(params=["REDIS_IMAGE", "VALKEY_IMAGE"])
def limited_user(request, new_redis, as_the_cache):
    """The service's user on a real server, who has the listed permissions; `limited_user(rules…)` changes them."""
    server = new_redis(variable=request.param)
    with redis.Redis.from_url(server.url) as admin:

        def limited_user(*rules):
            admin.execute_command("ACL", "SETUSER", "app", *rules)

        limited_user("on", ">secret", f"~{cache.make_key('*')}", *(f"+{command}" for command in COMMANDS))
        limited_user.admin = admin
        as_the_cache(server._replace(url=server.url.replace("redis://", "redis://app:secret@")))
        yield limited_user


@pytest.mark.only("real")
def test_a_user_with_only_the_listed_permissions_can_run_every_command_of_the_journal(limited_user):
    """The user may pass no key but the cache's, not even an empty one. (Real only: embedded servers have no users.)"""
    journal.begin()
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"1"', b"1") == "stored"
    journal.abandon(PAGE, miss)
    journal.withdraw(journal.lease({"t"}))
    lease = journal.lease({"t"})
    assert journal.leases().keys() == {lease}
    limited_user.admin.zadd(cache.make_key("journal"), {"|low": -1})  # so that the close drops records
    journal.close(lease)
    assert journal.lookup(PAGE).stale
    journal.abandon(PAGE, journal.lookup(PAGE))
    assert journal.inspect(PAGE).which == "t"
    journal.invalidate_entry(PAGE)
    journal.invalidate_everything()
    assert journal.inspect(PAGE) is None
    assert journal.end_verification(journal.begin_verification("a database"), {"t"})
    assert journal.verified("a database") < 60
    assert journal.ages()
    assert check_results("E005") == check_results("W002") == []


@pytest.mark.only("real")
def test_an_operator_with_a_limited_user_sees_everything_but_the_number_of_entries(home, read, limited_user):
    """The service lists no keys, so SCAN is not among the permissions. (Real only: embedded servers have no users.)"""
    read("cached")
    state = operations.status()

    assert state["entries"] == {"count": None, "is_all": False, "error": "The user of Redis may not list keys. Allow it +scan, or look at one URL at a time."}
    assert state["journal"]
    assert state["memory"]["used"] > 0
    limited_user("+scan")
    assert operations.status()["entries"] == {"count": 1, "is_all": True, "error": None}


@pytest.mark.only("real")
def test_a_user_who_lacks_any_of_the_listed_permissions_is_refused_with_its_name(twenty_properties, read, limited_user, verify):
    """Reads are served from the database until the permission is back. (Real only: embedded servers have no users.)"""
    begin_journal()
    body = read("cached").body
    for command in COMMANDS:
        assert check_results("E005") == []
        assert read("cached").came_from == "hit", command
        limited_user(f"-{command}")
        journal.forget_server()
        with pytest.raises(Refused, match=command.partition("|")[0]):
            journal.lookup(PAGE)
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=bypass; detail=unreachable", body)
        [(message, hint)] = check_results("E005")
        assert command.partition("|")[0] in message
        assert f"+{command}" in hint
        limited_user(f"+{command}")


@pytest.mark.only("real")
def test_a_user_who_may_not_use_the_keys_of_the_cache_is_refused_with_the_rules_to_set(limited_user):
    """The rule names the pattern of the cache's keys. (Real only: embedded servers have no users.)"""
    limited_user("resetkeys", "~another:*")

    with pytest.raises(Refused, match=f"Allow it ~{re.escape(cache.make_key('*'))} "):
        journal.lookup(PAGE)


# Real servers

IMAGES = pytest.mark.parametrize("image", ["REDIS_IMAGE", "VALKEY_IMAGE"])


@pytest.mark.only("real")
@IMAGES
def test_a_real_replica_is_refused_until_it_is_promoted(image, new_redis, as_the_cache, home, read, clock, verify):
    """It follows an unreachable primary, which is enough to be a replica. (Real only: embedded servers do not replicate.)"""
    server = new_redis(variable=image)
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        as_the_cache(server)
        with pytest.raises(Refused, match="it is a replica"):
            journal.lease({"t"})
        assert read("cached").came_from == "fwd=bypass; detail=unreachable"

        admin.replicaof("NO", "ONE")
        clock.seconds += 1
        begin_journal()
        assert [read("cached").came_from for _ in range(2)] == ["fwd=miss; stored", "hit"]


@pytest.mark.only("real")
@IMAGES
def test_a_real_primary_that_is_demoted_is_refused_once_its_connections_are_cut(image, own_redis, home, warm, read):
    """Sentinel and most managed servers cut them. The script is still loaded, and the entry still looks fresh. (Real only: embedded servers do not
    replicate.)
    """
    server = own_redis(variable=image)
    warm()
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        admin.client_kill_filter(_type="normal", skipme=True)

        assert read("cached").came_from == "fwd=bypass; detail=unreachable"


@pytest.mark.only("real")
@IMAGES
def test_a_real_cluster_is_refused(image, new_redis, as_the_cache, home, read):
    """Real only: embedded servers form no cluster."""
    as_the_cache(new_redis("--cluster-enabled", "yes", variable=image))

    with pytest.raises(Refused, match="it is a cluster"):
        journal.lookup(PAGE)
    assert read("cached").came_from == "fwd=bypass; detail=unreachable"


@pytest.mark.only("real")
def test_valkey_keeps_the_promise(own_redis, home, warm, read):
    """A restart from an old dump begins cold, as with Redis. (Real only: the embedded stack has no Valkey.)"""
    server = own_redis(variable="VALKEY_IMAGE")
    assert get_redis_connection("default").info()["server_name"] == "valkey"
    warm()
    get_redis_connection("default").save()
    home.title = "New"
    home.save()
    assert read("cached").came_from == "fwd=stale; stored"

    server.restart()

    response = read("cached")
    assert (response.came_from, response.rows[0]["title"]) == ("fwd=miss; detail=recovering", "New")


NOT_PROMISED = {
    "A primary that becomes a replica while its connections stay open is refused at once": "A process serves hits until a miss or a write of its own gets "
    "a READONLY error. Cut the connections, as Sentinel does.",
    "A process that still reaches a primary which Sentinel has replaced sees each write at once": "Both accept connections for some seconds. With "
    "min-replicas-to-write the old one refuses to be verified, so hits end within FRESHNESS_MAX_STALENESS. Without it they end when it is demoted.",
}
