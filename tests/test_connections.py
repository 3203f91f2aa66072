"""Connections. Every form of REDIS_URL is checked at start; Sentinel, TLS, Unix sockets and PgBouncer are tried on real servers.

The specs of real servers are for the real stack only, because fakeredis is reached in one way, and SQLite has no server.
"""

import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

import psycopg
import pytest
import redis
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.test import Client
from django_redis import get_redis_connection

from housing.database_url import database
from housing.freshness import Select, ours, watchman
from housing.freshness.journal import Unreachable, journal
from housing.models import Property
from housing.redis_url import FORMS, redis_cache
from tests.exploration.linearizability import Operation, violation
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.processes import any_free_port, python
from tests.fixtures.responses import ask
from tests.stacks import OwnRedis, new_container, program, start, wait_for

# REDIS_URL


SECRET = "s3cr3t"

ACCEPTED = {
    "redis": ["redis://127.0.0.1", "redis://127.0.0.1:6380/1", f"redis://user:{SECRET}@[::1]:6379/0", "redis://127.0.0.1?max_connections=20"],
    "rediss": ["rediss://127.0.0.1:6379/0", f"rediss://:{SECRET}@redis.example/0?ssl_ca_certs=/ca.pem"],
    "unix": ["unix:///run/redis.sock", f"unix://user:{SECRET}@/run/redis.sock?db=1"],
    "redis+sentinel": [
        "redis+sentinel://127.0.0.1/Housing/2",
        f"redis+sentinel://user:{SECRET}@127.0.0.1:7001,[::1],sentinel.example:7003/Housing/2?sentinel_username=watch&sentinel_password=its%40own",
    ],
    "rediss+sentinel": ["rediss+sentinel://127.0.0.1:26379/Housing/0?ssl_ca_certs=/ca.pem"],
    "fakeredis": ["fakeredis://", "fakeredis://127.0.0.1:6380/0"],
}


def connection_of(url, settings):
    """The connection that the service would open for this URL, not yet connected."""
    settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache"} | redis_cache(url, timeout=3)}
    return get_redis_connection("default").connection_pool.make_connection()


@pytest.mark.parametrize("scheme", FORMS)
def test_every_form_of_redis_url_leads_to_a_connection(scheme, settings):
    """An option that redis-py does not know would otherwise raise an error at each request."""
    for url in ACCEPTED[scheme]:
        assert connection_of(url, settings), url


def test_the_parts_of_a_url_with_sentinels_reach_the_servers_and_the_sentinels(settings):
    """The name of the service keeps its case, and the sentinels get their own user and password. Two caches may have a service of the same name."""
    connection_of(ACCEPTED["redis+sentinel"][0], settings)
    server = connection_of(ACCEPTED["redis+sentinel"][1], settings)
    pool = get_redis_connection("default").connection_pool

    assert (pool.service_name, pool.is_master, server.db, server.username, server.password) == ("Housing", True, 2, "user", SECRET)
    sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(sentinel["host"], sentinel["port"]) for sentinel in sentinels] == [("127.0.0.1", 7001), ("::1", 26379), ("sentinel.example", 7003)]
    assert {(sentinel["username"], sentinel["password"], sentinel["socket_timeout"]) for sentinel in sentinels} == {("watch", "its@own", 3)}
    assert {sentinel["retry"].get_retries() for sentinel in sentinels} == {0}, "the next sentinel is tried at once"


def test_tls_of_a_url_with_sentinels_is_used_for_the_servers_and_the_sentinels(settings):
    """One of them in plain text would send the password in plain text."""
    server = connection_of(ACCEPTED["rediss+sentinel"][0], settings)

    [sentinel] = get_redis_connection("default").connection_pool.sentinel_manager.sentinels
    assert {type(server).__name__, sentinel.connection_pool.connection_class.__name__} == {"SentinelManagedSSLConnection", "SSLConnection"}
    assert (server.ca_certs, sentinel.connection_pool.connection_kwargs["ssl_ca_certs"]) == ("/ca.pem", "/ca.pem")


REFUSED = {
    "no scheme": (f"{SECRET}@127.0.0.1:6379", "does not begin with a supported scheme. Use one of redis://"),
    "another scheme": (f"memcached://:{SECRET}@127.0.0.1", "does not begin with a supported scheme. Use one of redis://"),
    "a cluster": (f"redis+cluster://:{SECRET}@127.0.0.1,127.0.0.2/0", "leads to a cluster, .* Use a single server, redis://"),
    "a cluster with TLS": (f"rediss-cluster://:{SECRET}@127.0.0.1/0", "leads to a cluster, .* Use a single server, redis://"),
    "several hosts": (f"redis://:{SECRET}@127.0.0.1,127.0.0.2/0", r"has several hosts without `sentinel`, .* Use redis\+sentinel://"),
    "no host": ("redis:///0", "has no host, .* Use redis://"),
    "no host before the port": ("fakeredis://:6380/0", "has no host, .* Use fakeredis://"),
    "a port in words": (f"redis://127.0.0.1:{SECRET}/0", "has an invalid port: .* Use redis://"),
    "port 0": ("redis://127.0.0.1:0/0", "has an invalid port: .* Use redis://"),
    "port 65536": ("redis://127.0.0.1:65536/0", "has an invalid port: .* Use redis://"),
    "a database in words": (f"redis://127.0.0.1:6379/{SECRET}", "has an invalid database: .* Use redis://"),
    "a password with an @": (f"redis://:@{SECRET}@127.0.0.1/0", "must be percent-encoded, such as %40 for @. Use redis://"),
    "a password with a slash": (f"redis://:1/{SECRET}@127.0.0.1/0", "must be percent-encoded, .* Use redis://"),
    "a password with a question mark": (f"redis://:1?{SECRET}@127.0.0.1/0", "must be percent-encoded, .* Use redis://"),
    "a password with a comma": (f"redis://:1,{SECRET}@127.0.0.1/0", "must be percent-encoded, .* Use redis://"),
    "a password with a hash": (f"redis://:1#{SECRET}@127.0.0.1/0", "must be percent-encoded, .* Use redis://"),
    "a password with a bracket": (f"redis://:[{SECRET}@127.0.0.1/0", "must be percent-encoded, .* Use redis://"),
    "an unknown option": ("redis://127.0.0.1/0?ssl_ca_certs=/ca.pem", "does not accept here, or with an invalid value: ssl_ca_certs. Use redis://"),
    "a bad option": (f"redis://127.0.0.1/0?socket_timeout={SECRET}", "does not accept here, or with an invalid value: socket_timeout. Use redis://"),
    "no path": ("unix://", "has no path, .* Use unix://"),
    "a relative path": ("unix://run/redis.sock", "has no path, or a host before it. Use unix://"),
    "a socket's database in words": ("unix:///run/redis.sock?db=one", "does not accept here, or with an invalid value: db. Use unix://"),
    "no service": (f"redis+sentinel://:{SECRET}@127.0.0.1:26379", r"has no service: it is the name .* Use redis\+sentinel://"),
    "no service, with TLS": ("rediss+sentinel://127.0.0.1/", r"has no service: it is the name .* Use rediss\+sentinel://"),
    "a sentinel without a host": ("redis+sentinel://127.0.0.1:26379,/Housing", r"has no host, or an empty one in its list. Use redis\+sentinel://"),
    "a sentinel's port in words": (f"redis+sentinel://a:1,b:{SECRET}/Housing", r"has an invalid port: .* Use redis\+sentinel://"),
    "a service's database in words": (f"redis+sentinel://127.0.0.1/Housing/{SECRET}", r"has an invalid database: .* Use redis\+sentinel://"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_redis_url_that_cannot_work_is_refused_in_one_line_without_its_password(what):
    """The error is raised at start instead of at each request. A misplaced character can turn any part into the password, so no value is shown."""
    url, line = REFUSED[what]
    with pytest.raises(ImproperlyConfigured, match=f"^REDIS_URL .*{line}") as error:
        redis_cache(url, timeout=1)

    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    assert error.value.__context__ is None, "a traceback would show the value"


def test_the_service_does_not_start_with_a_redis_url_that_cannot_work():
    """Otherwise each request would be an error."""
    url, line = REFUSED["a cluster"]
    ended = python("manage.py", "check", DJANGO_SECRET_KEY="any", REDIS_URL=url)

    assert ended.code == 1
    assert re.fullmatch(f"REDIS_URL {line}.*\n", ended.stderr)
    assert SECRET not in ended.stderr


# A failover

IMAGES = ["REDIS_IMAGE", "VALKEY_IMAGE"]


@pytest.fixture
def servers():
    """The servers of this spec, which end with it."""
    with ExitStack() as servers:
        yield servers


@pytest.fixture(scope="session")
def certificate():
    """A folder with `cert.pem`, which is its own CA and valid for 127.0.0.1, and `key.pem`. Both are readable by the servers in containers."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        extensions = ["subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"]
        subprocess.run(
            [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=the specs"]
            + [argument for extension in extensions for argument in ("-addext", extension)]
            + ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
            check=True,
            capture_output=True,
        )
        Path(folder, "key.pem").chmod(0o644)
        yield folder


def listening(port, tls=False):
    """The arguments of a server that listens at this port, in plain text or with TLS only, and sends everything to other servers in the same way."""
    if not tls:
        return ["--port", port]
    files = ["--tls-cert-file", "/tls/cert.pem", "--tls-key-file", "/tls/key.pem", "--tls-ca-cert-file", "/tls/cert.pem"]
    return ["--port", "0", "--tls-port", port, *files, "--tls-auth-clients", "no", "--tls-replication", "yes"]


NO_DUMP = ["--save", "", "--appendonly", "no"]


class Sentinels:
    """A primary, its replica, and three sentinels that watch them. All have passwords, and all are in one network: an address is the same for each of them
    and for the spec.
    """

    SERVICE = "Housing"

    def __init__(self, servers, image, certificate, tls=False, min_replicas=0):
        self.servers, self.image, self.volume, self.tls = servers, image, certificate, {"ssl": True, "ssl_ca_certs": f"{certificate}/cert.pem"} if tls else {}
        with ExitStack() as free:
            sockets = [free.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
            self.primary, self.replica, *self.sentinels = [each.getsockname()[1] for each in sockets]
        self.containers = {}
        for port in reversed(self.sentinels):  # the last sentinel, which survives, holds the network
            own = ["exec $(command -v redis-server valkey-server | head -n 1) /tmp/sentinel.conf --sentinel", *listening(port, tls), "--requirepass watch"]
            self.start(port, ["sh", "-c", " ".join(map(str, ["touch /tmp/sentinel.conf &&", *own]))])
        login = [*NO_DUMP, "--requirepass", "secret", "--masterauth", "secret", "--min-replicas-to-write", min_replicas]
        self.start(self.primary, [*listening(self.primary, tls), *login])
        self.start(self.replica, [*listening(self.replica, tls), *login, "--replicaof", "127.0.0.1", self.primary])
        self.watch()

    @property
    def url(self):
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        scheme, option = ("rediss+sentinel", f"&ssl_ca_certs={self.volume}/cert.pem") if self.tls else ("redis+sentinel", "")
        return f"{scheme}://:secret@{hosts}/{self.SERVICE}/0?sentinel_password=watch{option}"

    def start(self, port, command):
        container = self.containers[port] = new_container(self.image).with_command([str(part) for part in command])
        container.with_volume_mapping(self.volume, "/tls", "ro")
        if len(self.containers) == 1:
            for each in (self.primary, self.replica, *self.sentinels):
                container.with_bind_ports(each, each)
        else:
            container.with_kwargs(network_mode=f"container:{self.containers[self.sentinels[-1]].get_wrapped_container().id}")
        start(container, self.servers)

    def client(self, port, password):
        return closing(redis.Redis("127.0.0.1", port, password=password, decode_responses=True, **self.tls))

    def watch(self):
        """Let the sentinels watch the primary, and wait until each knows the replica and the other sentinels."""
        with self.client(self.replica, "secret") as replica:
            wait_for(lambda: expect(replica.info("replication")["master_link_status"] == "up"), (redis.ConnectionError, NotYet))
        for port in self.sentinels:
            with self.client(port, "watch") as sentinel:
                wait_for(sentinel.ping, redis.ConnectionError)
                sentinel.sentinel_monitor(self.SERVICE, "127.0.0.1", self.primary, 2)
                for option, value in {"auth-pass": "secret", "down-after-milliseconds": 500, "failover-timeout": 5_000}.items():
                    sentinel.sentinel_set(self.SERVICE, option, value)
        for port in self.sentinels:
            wait_for(lambda port=port: expect(self.known(port) == (self.primary, 1, 2)), NotYet)

    def known(self, port):
        """The port of the primary that this sentinel names, and how many replicas and other sentinels it knows."""
        with self.client(port, "watch") as sentinel:
            state = sentinel.sentinel_master(self.SERVICE)
        return state["port"], state["num-slaves"], state["num-other-sentinels"]

    def kill(self, *ports):
        """Kill these servers with SIGKILL."""
        for port in ports:
            self.containers[port].get_wrapped_container().kill()


TLS_SERVER_ENDS = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
"""For a spec that kills a server with TLS: Python leaves a socket to the garbage collector if it is reset between connect() and the handshake."""


class NotYet(Exception):
    """Something that a spec waits for has not happened."""


def expect(holds):
    if not holds:
        raise NotYet


class Load:
    """Two readers and a writer of one property, each in a thread with connections of its own."""

    AT_MOST = 100_000
    """Operations of each, in case the failover never ends."""

    READS_PER_WRITE = 6
    """At most four of them can miss, one that overlaps each write and one after it of both readers, so some are hits however slow this machine is."""

    def __init__(self, home, handler):
        self.pk, self.handler, self.over = home.pk, handler, threading.Event()
        self.history, self.came_from, self.reads = [], Counter(), threading.Semaphore(0)

    def operate(self, who, kind, act):
        """Repeat an operation until the load is over. An error of one ends it for all."""
        try:
            for number in takewhile(lambda _: not self.over.is_set(), range(self.AT_MOST)):
                if kind == "write":
                    self.await_reads()  # outside of the operation's interval
                began = time.monotonic()
                value = act(number)
                self.history.append(Operation(who, kind, value, began, time.monotonic()))
        finally:
            self.over.set()
            connections.close_all()

    def read(self, _):
        client = Client()
        client.handler = self.handler
        response = ask(client, f"cached/{self.pk}")
        self.came_from[response.came_from] += 1
        self.reads.release()
        return float(response.json["price"])

    def write(self, number):
        price = 1_000_000.0 + number
        Property.objects.filter(pk=self.pk).update(price=price)
        return price

    def await_reads(self):
        """Let the readers read between two writes."""
        for _ in range(self.READS_PER_WRITE):
            while not self.reads.acquire(timeout=0.1) and not self.over.is_set():
                pass

    def more(self, number, came_from="hit"):
        """Wait until each kind has this number of further operations, and this number of further reads came from `came_from`, or the load is over."""
        before, counts = Counter(operation.who for operation in self.history), self.came_from[came_from]

        def enough():
            done = Counter(operation.who for operation in list(self.history)) - before
            expect(self.over.is_set() or (min(done[who] for who in ("T1", "T2", "T3")) >= number and self.came_from[came_from] - counts >= number))

        wait_for(enough, NotYet)


@pytest.fixture
def serving(settings, transactional_db):
    """The bound and the watchman as in a serving process, instead of verifications at steps of the spec."""
    settings.FRESHNESS_WATCHMAN, settings.FRESHNESS_MAX_STALENESS = True, 1.0
    watchman.watchman.forget()
    yield
    watchman.watchman.stop()
    watchman.watchman.forget()


@TLS_SERVER_ENDS
@pytest.mark.slow
@pytest.mark.only("real")
@pytest.mark.parametrize(("image", "tls"), [("REDIS_IMAGE", False), ("VALKEY_IMAGE", True)], ids=["Redis", "Valkey with TLS"])
def test_after_the_primary_is_killed_under_load_writes_continue_and_no_read_is_stale(
    servers, certificate, image, tls, serving, home, as_the_cache, handler, record_property
):
    """T1, T2 read, T3 writes · the primary and a sentinel are killed · Sentinel promotes the replica · T1, T2 hit again. The journal of the new primary has
    another epoch, because its script has another run id.
    """
    sentinels = Sentinels(servers, image, certificate, tls)
    as_the_cache(OwnRedis(sentinels.url, bool))
    clear_the_cache()
    before = journal.lookup("page").epoch
    load = Load(home, handler)
    with ThreadPoolExecutor() as clients:
        running = [clients.submit(load.operate, *client) for client in (("T1", "read", load.read), ("T2", "read", load.read), ("T3", "write", load.write))]
        try:
            load.more(20)
            instants = [time.monotonic()]
            sentinels.kill(sentinels.primary, sentinels.sentinels[0])
            wait_for(lambda: expect(sentinels.known(sentinels.sentinels[1])[0] == sentinels.replica), NotYet)
            instants.append(time.monotonic())
            load.more(20)
            instants.append(time.monotonic())
        finally:
            load.over.set()
    promoted, hit = (instant - instants[0] for instant in instants[1:])
    counted = f"{len(load.history):,} operations, {load.came_from['hit']:,} hits, a new primary after {promoted:.1f} s, and 20 hits after {hit:.1f} s"
    record_property("counted", counted)
    for client in running:
        client.result()  # raises the error of an operation that failed

    assert violation(load.history, initial=float(home.price)) is None
    assert journal.lookup("page").epoch != before
    assert get_redis_connection("default").connection_pool.master_address == ("127.0.0.1", sentinels.replica)


WRITES = """
import sys
from django.conf import settings
settings.CACHES["default"]["KEY_PREFIX"], pk = sys.argv[1], int(sys.argv[2])
import django
django.setup()
from housing.models import Property
Property.objects.filter(pk=pk).update(price=2)
"""
"""Another process, which writes a price."""


@pytest.mark.only("real")
@pytest.mark.parametrize("image", IMAGES)
def test_a_process_that_still_reaches_a_replaced_primary_is_never_verified_by_it(
    servers, certificate, image, home, warm, price, as_the_cache, settings, verify
):
    """Sentinel replaces a primary while this process is connected to it · another process writes through the new primary. The old one refuses to be verified,
    because min-replicas-to-write is 1 and its replica has left.
    """
    sentinels = Sentinels(servers, image, certificate, min_replicas=1)
    as_the_cache(OwnRedis(sentinels.url, bool))
    clear_the_cache()
    warm()
    get_redis_connection("default").zrem(cache.make_key("journal"), f"|begun:{ours().identity}")  # the next verification is due
    with sentinels.client(sentinels.sentinels[0], "watch") as sentinel:
        sentinel.execute_command("SENTINEL FAILOVER", sentinels.SERVICE)
    wait_for(lambda: expect(sentinels.known(sentinels.sentinels[0])[0] == sentinels.replica), NotYet)
    database = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(connection.settings_dict)
    environment = {"DJANGO_SETTINGS_MODULE": "housing.settings", "DJANGO_SECRET_KEY": "any", "DATABASE_URL": database, "REDIS_URL": sentinels.url}
    wrote = python("-c", WRITES, settings.CACHES["default"]["KEY_PREFIX"], str(home.pk), **environment)
    assert wrote.code == 0, wrote.stderr

    with suppress(Unreachable):
        watchman.verify(ours())

    assert price()[0] == "2.00"


# TLS and Unix sockets


@pytest.fixture(params=IMAGES)
def reached(request, servers, certificate, as_the_cache):
    """`reached(way)`: a server with a password, reached in this way, as the cache. Returns its address and its container."""

    def reached(way, options=None):
        port, container = any_free_port(), new_container(request.param)
        if way == "a Unix socket":
            folder = servers.enter_context(tempfile.TemporaryDirectory())
            Path(folder).chmod(0o777)  # the server has a user of its own
            address, arguments = f"{folder}/redis.sock", ["--port", "0", "--unixsocket", "/socket/redis.sock", "--unixsocketperm", "777"]
            container.with_volume_mapping(folder, "/socket", "rw")
            url = f"unix://:secret@{address}?db=0"
        else:
            address, arguments = f"127.0.0.1:{port}", listening(port, tls=True)
            container.with_volume_mapping(certificate, "/tls", "ro").with_bind_ports(port, port)
            url = f"rediss://:secret@{address}/0?ssl_ca_certs={certificate}/cert.pem"
        start(container.with_command([*map(str, arguments), *NO_DUMP, "--requirepass", "secret"]), servers)
        with redis.Redis.from_url(url) as admin:
            wait_for(admin.ping, redis.ConnectionError)
        as_the_cache(OwnRedis(url if options is None else url.partition("?")[0] + options, bool))
        return address, container.get_wrapped_container()

    return reached


@TLS_SERVER_ENDS
@pytest.mark.only("real")
@pytest.mark.parametrize("way", ["TLS", "a Unix socket"])
def test_freshness_is_the_same_over_tls_and_a_unix_socket(reached, way, home, warm, price, reprice):
    """A hit, a write in the next read, a server that is killed, whose address is in the message, and one that restarts without data."""
    address, container = reached(way)
    clear_the_cache()
    warm()
    reprice(5)
    assert [price(), price()] == [("5.00", "fwd=stale; stored"), ("5.00", "hit")]

    container.kill()
    with pytest.raises(Unreachable, match=f"^Redis at {re.escape(address)} is unreachable"):
        journal.lookup("page")
    assert price() == ("5.00", "fwd=bypass; detail=unreachable")
    container.start()
    wait_for(lambda: journal.lookup("page"), Unreachable)
    reprice(6)
    assert price() == ("6.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
def test_a_server_whose_certificate_is_not_trusted_is_not_used(reached, home, price):
    """Anybody could have answered. The certificate is not in the system's list of CAs, and the URL does not name it."""
    reached("TLS", options="")

    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        journal.lookup("page")
    assert price() == ("300000.00", "fwd=bypass; detail=unreachable")


# PgBouncer

POOLER = """
[databases]
* = host={HOST} port={PORT}
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
ignore_startup_parameters = options
auth_type = scram-sha-256
auth_file = {folder}/users.txt
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
logfile = {folder}/pgbouncer.log
"""
"""A PgBouncer that gives each transaction another one of three connections to the server."""


@pytest.fixture
def pooled(servers, transactional_db):
    """PgBouncer in transaction mode between the service and PostgreSQL, with the URL in docs/operating.md."""
    direct, port = dict(connection.settings_dict), any_free_port()
    folder = servers.enter_context(tempfile.TemporaryDirectory())
    Path(folder).chmod(0o777)  # started by root, PgBouncer changes to another user
    Path(folder, "users.txt").write_text('"{USER}" "{PASSWORD}"\n'.format_map(direct))
    Path(folder, "pgbouncer.ini").write_text(POOLER.format(**direct | {"folder": folder, "port": port}))
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    running = servers.enter_context(subprocess.Popen([program("pgbouncer"), "--quiet", *user, f"{folder}/pgbouncer.ini"], stderr=subprocess.DEVNULL))
    servers.callback(running.terminate)
    url = "postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/{NAME}?DISABLE_SERVER_SIDE_CURSORS=True".format(**direct | {"port": port})
    wait_for(lambda: psycopg.connect(url.partition("?")[0], connect_timeout=1).close(), psycopg.OperationalError)
    with ExitStack() as three:  # transactions at the same time, so that there are three connections to the server
        for _ in range(3):
            three.enter_context(psycopg.connect(url.partition("?")[0])).execute("SELECT 1")
    connection.close()
    with patch.dict(connection.settings_dict, database(url)):
        yield
        connection.close()


def backends(number):
    """The server's processes that answer this number of queries in autocommit, one after the other."""
    with connection.cursor() as cursor:
        return {cursor.execute("SELECT pg_backend_pid()").fetchone()[0] for _ in range(number)}


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_pgbouncer_gives_each_transaction_another_connection():
    """Otherwise the specs below would show nothing about it. Inside a transaction the connection stays the same."""
    assert len(backends(9)) == 3
    with transaction.atomic():
        assert len(backends(9)) == 1


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_through_pgbouncer_a_page_costs_one_query_and_then_none(home, read, queries):
    """The identity of the database, which is in each key, is the same over every connection."""
    with queries.exactly(1, because="one SELECT joins the agent, the office and the location"):
        assert read("cached").came_from == "fwd=miss; stored"
    with queries.exactly(0, because="it is cached"):
        assert read("cached").came_from == "hit"
    with queries.exactly(2, because="a property and its images are read in one snapshot, in one transaction"):
        assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"
    assert read(f"cached/{home.pk}").came_from == "hit"


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_through_pgbouncer_a_saved_price_is_in_the_next_read(home, warm, price, reprice):
    """Twenty times, because by default psycopg prepares a statement that it has sent five times. Django turns that off."""
    for number in range(20):
        warm()
        reprice(number)
        assert price() == (f"{number}.00", "fwd=stale; stored")


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_through_pgbouncer_nothing_is_prepared(home):
    """A prepared statement belongs to one connection of the server, and the next statement goes over another one."""
    page = Select(Property.objects.values_list("pk"))
    for _ in range(9):
        assert len(page.rows()) == 20
        home.save()
    with connection.cursor() as cursor:
        assert {cursor.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0] for _ in range(3)} == {0}


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_through_pgbouncer_a_rollback_leaves_every_page_warm(home, warm, read):
    """Savepoints and the rollback go over the connection of their transaction."""
    warm()
    with transaction.atomic():
        with transaction.atomic():
            home.delete()
        transaction.set_rollback(True)

    assert read("cached").came_from == "hit"


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled")
def test_through_pgbouncer_a_write_without_redis_is_in_the_next_read_after_a_verification(home, warm, price, reprice, redis_unreachable, verify):
    """The outbox is written in the transaction of the write, and read over another connection."""
    warm()
    with redis_unreachable():
        reprice(7)
        assert price() == ("7.00", "fwd=bypass; detail=unreachable")

    verify()
    assert [price(), price()] == [("7.00", "fwd=stale; stored"), ("7.00", "hit")]


@pytest.mark.only("real")
@pytest.mark.usefixtures("pooled", "home")
def test_through_pgbouncer_rows_can_be_iterated_with_the_setting_of_the_url():
    """`iterator()` reads from a cursor of the server otherwise, which belongs to one connection."""
    assert len(list(Property.objects.iterator(chunk_size=2))) == 20
