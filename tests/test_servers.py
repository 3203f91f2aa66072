"""Servers that cannot keep the promise. Each is refused by name: at first use, by `check --deploy`, and in /health/.

Reads are answered from the database as without Redis, and a lease is not given. The server is asked again a second later.
"""

import re
import socket
import socketserver
import threading

import pytest
import redis
from django.core import checks
from django.core.cache import cache
from django_redis import get_redis_connection

from conftest import OwnRedis
from housing.freshness.journal import REFUSED_FOR, SCRIPT, Miss, Refused, Unreachable, journal
from housing.freshness.servers import COMMANDS, SCRIPTED, SENT

PAGE = cache.make_key("page")


class Stub(socketserver.ThreadingTCPServer):
    """A server that says what a spec tells it to: `says` is its INFO, `replies` what else it replies, by command, in RESP."""

    daemon_threads = True

    class RequestHandlerClass(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.sockets.append(self.connection)
            while line := self.rfile.readline():
                parts = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2].decode() for _ in range(int(line[1:]))]
                self.wfile.write(self.server.reply(*parts))

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)
        self.says, self.commands, self.sockets = {}, [], []
        self.replies = {"HELLO": b"%1\r\n+proto\r\n:3\r\n", "CLIENT": b"-ERR unknown command\r\n", "SCRIPT": b"+the sha\r\n"}
        self.script_replies = {"forbidden": b"*0\r\n", "lookup": b"*3\r\n+miss\r\n+1\r\n+1\r\n"}

    @property
    def address(self):
        return "{}:{}".format(*self.server_address)

    def cut(self):
        """End every connection."""
        while self.sockets:
            self.sockets.pop().shutdown(socket.SHUT_RDWR)

    def reply(self, command, *arguments):
        self.commands += [command] if command not in ("HELLO", "CLIENT") else []
        if command == "EVALSHA":
            return self.script_replies[arguments[2 + int(arguments[1])]]
        if command == "INFO" and command not in self.replies:
            info = "".join(f"{name}:{value}\r\n" for name, value in self.says.items()).encode()
            return b"$%d\r\n%b\r\n" % (len(info), info)
        return self.replies[command]


@pytest.fixture
def clock(monkeypatch):
    """The clock by which a refusal holds; `clock.seconds += 1` turns it."""

    class Clock:
        seconds = 0.0

    clock = Clock()
    monkeypatch.setattr("housing.freshness.journal.monotonic", lambda: clock.seconds)
    return clock


@pytest.fixture
def stub(settings, clock):
    """A stub, as the service's cache."""
    settings.FRESHNESS_RUN_ID = None
    with Stub() as stub:
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.001})
        thread.start()
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": f"redis://{stub.address}/0", "OPTIONS": {}}}
        journal.forget_server()
        yield stub
        get_redis_connection("default").connection_pool.disconnect()
        journal.forget_server()
        stub.shutdown()
        thread.join()


def info(version="8.0.6", **fields):
    """The INFO of a Redis that can keep the promise, but for these fields; None leaves one out."""
    fields = {"redis_version": version, "redis_mode": "standalone", "run_id": "a1b2c3", "role": "master", "maxmemory": 0} | fields
    return {name: value for name, value in fields.items() if value is not None}


def valkey(version="9.1.2", **fields):
    """The same of a Valkey."""
    return info("7.2.4", **{"server_name": "valkey", "valkey_version": version, "redis_mode": None, "server_mode": "standalone"} | fields)


def said(what, **options):
    """The checks with this id, as (message, hint)."""
    return [(message.msg, message.hint) for message in checks.run_checks(include_deployment_checks=True, **options) if message.id == f"freshness.{what}"]


OLD = "before Redis 7.0 a script survives a restart and a failover, and an old dump looks like the current data."
MUTE = "its INFO lacks the run_id or the version, so an old dump looks like the current data."
CLUSTER = "it is a cluster, in which the journal and the entries are on several nodes."
REPLICA = "it is a replica, which lags behind another server and takes no lease."
NEWER, GIVES_BOTH = "Use Redis 7.0 or newer, or Valkey 7.2 or newer.", "Use a server that gives both."

REFUSED = {
    "Redis 6.2": (info("6.2.14"), "Redis 6.2.14", OLD, NEWER),
    "Redis 6.0": (info("6.0.20"), "Redis 6.0.20", OLD, NEWER),
    "an older Valkey": (valkey("7.1.9"), "Valkey 7.1.9", OLD, NEWER),
    "no run_id": (info(run_id=None), "Redis 8.0.6", MUTE, GIVES_BOTH),
    "an empty run_id": (info(run_id=""), "Redis 8.0.6", MUTE, GIVES_BOTH),
    "no version": (info(None), "Redis", MUTE, GIVES_BOTH),
    "no INFO": (None, "Redis", MUTE, GIVES_BOTH),
    "a cluster": (info(redis_mode="cluster"), "Redis 8.0.6", CLUSTER, "Use a server without cluster-enabled."),
    "a cluster of Valkey": (valkey(server_mode="cluster"), "Valkey 9.1.2", CLUSTER, "Use a server without cluster-enabled."),
    "a replica": (info(role="slave"), "Redis 8.0.6", REPLICA, "Use the primary's address."),
    "a replica of Valkey": (valkey(role="slave"), "Valkey 9.1.2", REPLICA, "Use the primary's address."),
}


@pytest.fixture(params=REFUSED)
def refused(request, stub):
    """A stub that cannot keep the promise: its name and address with the reason, and the remedy."""
    says, name, why, remedy = REFUSED[request.param]
    if says is None:
        stub.replies["INFO"] = b"-ERR unknown command 'INFO'\r\n"
    else:
        stub.says = says
    return f"{name} at {stub.address} cannot keep the promise: {why}", remedy


def test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use(stub, refused):
    """With Redis 6.2 this covers a restart from an AOF that lacks the last write, and a failover to a lagging replica: there the script, and
    with it the old run id in its text, is written to the AOF and replicated, so an old journal would pass for the current one."""
    for act in (lambda: journal.lookup(PAGE), lambda: journal.lease({"t"}), journal.leases, journal.begin):
        with pytest.raises(Refused) as error:
            act()
        assert str(error.value) == " ".join(refused)
        assert isinstance(error.value, Unreachable), "its callers know what to do without Redis"
    assert set(stub.commands) == {"INFO"}


def test_a_server_that_cannot_keep_the_promise_is_not_read_from(twenty_properties, stub, refused, read, caplog):
    """Each read is answered from the database, and the log says why."""
    assert read("cached").body == read("optimized").body
    assert read("cached").came_from == "fwd=bypass; detail=unreachable"
    assert caplog.messages == [f"Answered from the database: {' '.join(refused)}"] * 2


def test_check_deploy_refuses_a_server_that_cannot_keep_the_promise(stub, refused):
    assert said("E005") == [refused]


@pytest.mark.django_db
def test_health_says_why_a_server_is_refused(client, stub, refused):
    """With 200, because every read is still answered."""
    response = client.get("/health/")

    assert response.status_code == 200
    assert response.json() == {"database": "ok", "cache": f"refused: {' '.join(refused)}"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "says", [info("7.0.0"), info("7.4.2"), info("10.0.1"), valkey("7.2.5"), valkey("9.1.2")], ids=lambda says: says.get("valkey_version", says["redis_version"])
)
def test_a_server_that_can_keep_the_promise_is_used(client, stub, says):
    stub.says = says

    assert isinstance(journal.lookup(PAGE), Miss)
    assert said("E005") == said("W002") == []
    assert client.get("/health/").json()["cache"] == "ok"


def test_the_first_use_asks_for_info_once(stub):
    """The next one sends only its own script."""
    stub.says = info()
    journal.lookup(PAGE)
    journal.lookup(PAGE)

    assert stub.commands == ["INFO", "SCRIPT", "EVALSHA", "EVALSHA", "EVALSHA"]  # of the three, the first asks for permissions


def test_a_replica_that_is_promoted_is_used_without_a_restart(stub, clock):
    """A second after it was refused it is asked again, over a new connection. Until then a read costs no round trip to it."""
    stub.says = info(role="slave")
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    stub.says = info()
    clock.seconds += REFUSED_FOR - 0.001
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    assert stub.commands == ["INFO"]

    clock.seconds += 0.001
    assert isinstance(journal.lookup(PAGE), Miss)
    assert len(stub.sockets) == 2


def test_health_and_check_deploy_ask_a_refused_server_at_once(client, db, stub):
    """Somebody who has just corrected it wants to see that it is right, and then it is used at once."""
    stub.says = info(role="slave")
    with pytest.raises(Refused):
        journal.lookup(PAGE)
    stub.says = info()

    assert client.get("/health/").json()["cache"] == "ok"
    assert said("E005") == []
    assert isinstance(journal.lookup(PAGE), Miss)


def test_a_primary_that_becomes_a_replica_is_refused_after_the_first_error(stub):
    """Its READONLY may come from another server under the same address."""
    stub.says = info()
    journal.lookup(PAGE)
    stub.says, stub.script_replies["lookup"] = info(role="slave"), b"-READONLY You can't write against a read only replica.\r\n"
    with pytest.raises(Unreachable, match="read only replica"):
        journal.lookup(PAGE)

    with pytest.raises(Refused, match="it is a replica"):
        journal.lookup(PAGE)


def test_a_server_behind_a_new_connection_is_asked_what_it_is(stub):
    """A failover cuts the connections. Then the address leads to another server, or to the same one, which is a replica now."""
    stub.says = info()
    journal.lookup(PAGE)
    stub.says = info(role="slave")
    stub.cut()

    with pytest.raises(Refused, match="it is a replica"):
        journal.lookup(PAGE)


def test_a_thread_that_gets_no_connection_does_not_keep_the_one_that_it_gave_back(redis_unreachable):
    """Another thread may have it by now, and would read the replies of this one."""
    journal.lookup(PAGE)
    with redis_unreachable():
        for _ in range(2):
            with pytest.raises(Unreachable):
                journal.lookup(PAGE)
        assert journal._line.connection is None


# What its user must be allowed


def test_the_commands_that_an_acl_must_allow_are_those_of_the_script_and_those_that_are_sent(stub):
    stub.says = info()
    journal.lookup(PAGE)

    assert {command.lower() for command in re.findall(r"\bcall\('(\w+)'", SCRIPT)} == set(SCRIPTED)
    assert {command.lower() for command in stub.commands} == {command.partition("|")[0] for command in SENT}


def test_a_user_who_may_not_run_the_script_is_refused_with_the_rules_to_set(stub):
    """One command less could break the script half way."""
    stub.says, stub.script_replies["forbidden"] = valkey(), b"*2\r\n+zadd\r\n+zrem\r\n"
    with pytest.raises(Refused) as error:
        journal.lookup(PAGE)

    assert str(error.value) == (
        f"Valkey 9.1.2 at {stub.address} cannot keep the promise: its user lacks a permission (it may not run zadd, zrem). "
        f"Allow it ~{cache.make_key('*')} +info +script|load +evalsha +del +hdel +hget +hmget +hset +pexpire +time +zadd +zmscore "
        "+zrangebyscore +zrem +zremrangebyscore"
    )
    assert said("E005") == [(error.value.reason, error.value.remedy)]
    stub.script_replies["forbidden"] = b"*0\r\n"
    assert said("E005") == []


@pytest.mark.parametrize(
    "reply",
    [b"-NOPERM No permissions to access a key\r\n", b"-ERR ACL failure in script: User app has no permissions to run the 'zrem' command\r\n"],
    ids=["of a key", "of a command"],
)
def test_a_permission_that_is_taken_away_later_is_named(stub, reply):
    stub.says = info()
    journal.lookup(PAGE)
    stub.script_replies["lookup"] = reply

    with pytest.raises(Refused, match=r"its user lacks a permission \(.*\)\. Allow it ~"):
        journal.lookup(PAGE)


@pytest.fixture(params=["REDIS_IMAGE", "VALKEY_IMAGE"])
def limited_user(request, new_redis, as_the_cache):
    """`limited_user(rules…)` sets what a user may do on a real server; the service is that user, who may at first do what is listed."""
    server = new_redis(variable=request.param)
    with redis.Redis.from_url(server.url) as admin:

        def limited_user(*rules):
            admin.execute_command("ACL", "SETUSER", "app", *rules)

        limited_user("on", ">secret", f"~{cache.make_key('*')}", *(f"+{command}" for command in COMMANDS))
        limited_user.admin = admin
        as_the_cache(OwnRedis(server.url.replace("redis://", "redis://app:secret@"), server.restart))
        yield limited_user


@pytest.mark.only("real")
def test_a_user_who_may_run_what_is_listed_can_run_every_verb(limited_user):
    """Only real servers have users. Nothing else than the keys of the cache may be passed, not even an empty key."""
    journal.begin()
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"1"', b"1") == "stored"
    journal.abandon(PAGE, miss)
    journal.withdraw(journal.lease({"t"}))
    lease = journal.lease({"t"})
    assert journal.leases().keys() == {lease}
    limited_user.admin.zadd(cache.make_key("journal"), {"low": -1})  # so old that records are dropped
    journal.close(lease)
    assert journal.lookup(PAGE).stale
    journal.abandon(PAGE, journal.lookup(PAGE))
    assert said("E005") == said("W002") == []


@pytest.mark.only("real")
def test_a_user_who_lacks_any_of_the_listed_permissions_is_refused_by_name(twenty_properties, read, limited_user):
    """Only real servers have users. Reads are answered from the database, until the permission is there again."""
    journal.begin()
    body = read("cached").body
    for command in COMMANDS:
        assert said("E005") == []
        assert read("cached").came_from == "hit", command
        limited_user(f"-{command}")
        journal.forget_server()
        with pytest.raises(Refused, match=command.partition("|")[0]):
            journal.lookup(PAGE)
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=bypass; detail=unreachable", body)
        [(message, hint)] = said("E005")
        assert command.partition("|")[0] in message
        assert f"+{command}" in hint
        limited_user(f"+{command}")


@pytest.mark.only("real")
def test_a_user_who_may_not_use_the_keys_of_the_cache_is_refused_by_name(limited_user):
    """Only real servers have users."""
    limited_user("resetkeys", "~another:*")

    with pytest.raises(Refused, match=f"Allow it ~{re.escape(cache.make_key('*'))} "):
        journal.lookup(PAGE)


# Real servers

IMAGES = pytest.mark.parametrize("image", ["REDIS_IMAGE", "VALKEY_IMAGE"])


@pytest.mark.only("real")
@IMAGES
def test_a_real_replica_is_refused_until_it_is_promoted(image, new_redis, as_the_cache, home, read, clock):
    """Only real servers replicate. It follows a server that does not answer, which is enough to be one."""
    server = new_redis(variable=image)
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        as_the_cache(server)
        with pytest.raises(Refused, match="it is a replica"):
            journal.lease({"t"})
        assert read("cached").came_from == "fwd=bypass; detail=unreachable"

        admin.replicaof("NO", "ONE")
        clock.seconds += REFUSED_FOR
        journal.begin()
        assert [read("cached").came_from for _ in range(2)] == ["fwd=miss; stored", "hit"]


@pytest.mark.only("real")
@IMAGES
def test_a_real_primary_that_is_demoted_is_refused_once_its_connections_are_cut(image, own_redis, home, warm, read):
    """Only real servers replicate. Sentinel and most managed servers cut them; the script is still there, and so is a page that looks fresh."""
    server = own_redis(variable=image)
    warm()
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        admin.client_kill_filter(_type="normal", skipme=True)

        assert read("cached").came_from == "fwd=bypass; detail=unreachable"


@pytest.mark.only("real")
@IMAGES
def test_a_real_cluster_is_refused(image, new_redis, as_the_cache, home, read):
    """Only real servers form one."""
    as_the_cache(new_redis("--cluster-enabled", "yes", variable=image))

    with pytest.raises(Refused, match="it is a cluster"):
        journal.lookup(PAGE)
    assert read("cached").came_from == "fwd=bypass; detail=unreachable"


@pytest.mark.only("real")
def test_valkey_keeps_the_promise(own_redis, home, warm, read):
    """Only the real stack has a server of its own for this. A restart from an old dump begins cold, as with Redis."""
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
    "A primary that becomes a replica while its connections stay is refused at once": "Hits go on until READONLY is the reply to a miss or a write of the "
    "process. Cut its connections, as Sentinel does.",
}
