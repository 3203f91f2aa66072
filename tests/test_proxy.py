"""The instruments of the fault table: a proxy that inflicts the faults of a network, and what is concluded from reads and writes."""

import socket
import socketserver
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import faults, proxy
from tests.fixtures.faults import COLD, FAULTS, LIVE, UNCHANGED, WRITTEN
from tests.fixtures.proxy import Fault, proxying
from tests.measurements.faults import COLUMNS, KINDS, READS, WORK, Read, Result, Write, table
from tests.stacks import TIMEOUT, wait_for


class Echo(socketserver.BaseRequestHandler):
    """Sends each line back, with the name of its server."""

    def handle(self):
        with self.request.makefile("rb") as lines:
            for line in lines:
                self.request.sendall(self.server.name + b": " + line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    name = b"one"

    def handle_error(self, *_):
        """Print nothing: the proxy resets connections."""


@pytest.fixture
def new_server():
    """`new_server(name)`: start an echo server, and return its address."""
    servers = []

    def new_server(name):
        server = Server(("127.0.0.1", 0), Echo)
        server.name = name
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.001}).start()
        return server.server_address

    yield new_server
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def one(new_server):
    """A proxy in front of an echo server."""
    with proxying(*new_server(b"one")) as one:
        yield one


@pytest.fixture
def connect(one):
    """`connect()`: open a connection to the proxy."""
    opened = []

    def connect():
        opened.append(socket.create_connection(("127.0.0.1", one.port), timeout=TIMEOUT))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def echo(connection, line=b"hello"):
    """Send a line, and return the reply until its end, or the end of the connection."""
    connection.sendall(line + b"\n")
    reply = b""
    while not reply.endswith(b"\n") and (part := connection.recv(100)):
        reply += part
    return reply


# The proxy


def test_without_a_fault_it_forwards_requests_and_replies(one, connect):
    """A difference that a spec measures must come from the fault and not from the proxy."""
    connection = connect()
    assert [echo(connection), echo(connection, b"x" * 10**6), echo(connect())] == [b"one: hello\n", b"one: " + b"x" * 10**6 + b"\n", b"one: hello\n"]
    assert one.accepted == 2


def test_it_refuses_connections_and_resets_open_ones(one, connect):
    """As from a machine on which nobody listens. Its port stays its own."""
    connection = connect()
    echo(connection)
    with one.inflicting(Fault(refuses=True)):
        with pytest.raises(ConnectionError):
            echo(connection)
        with pytest.raises(ConnectionRefusedError):
            connect()
    assert echo(connect()) == b"one: hello\n"


def test_it_accepts_connections_and_swallows_what_is_sent(one, connect):
    """As a stopped process. An old connection whose bytes are lost is reset afterwards, because the rest would make no sense."""
    before, idle = connect(), connect()
    echo(before), echo(idle)
    with one.inflicting(Fault(swallows=True)):
        during = connect()
        for connection in (before, during):
            connection.settimeout(0.05)
            with pytest.raises(TimeoutError):
                echo(connection)
            connection.settimeout(TIMEOUT)
        wait_for(lambda: two_lines_are_swallowed(one), AssertionError)
    for connection in (before, during):
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert echo(idle) == echo(connect()) == b"one: hello\n"


def two_lines_are_swallowed(proxy):
    assert proxy.swallowed == 2 * len(b"hello\n")


def test_it_delays_replies(one, connect):
    """A slow server raises no error, so specs of timeouts need replies that arrive late."""
    connection = connect()
    with one.inflicting(Fault(delay=0.05)):
        began = time.monotonic()
        assert echo(connection) == b"one: hello\n"
        assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("resets", [False, True])
def test_it_ends_a_connection_in_the_middle_of_a_reply(one, connect, resets):
    """With FIN, the client may take the part for the whole. With RST, it gets an error. A shorter reply is complete."""
    connection = connect()
    with one.inflicting(Fault(forwards=8, resets=resets)):
        assert echo(connection, b"hi") == b"one: hi\n"
        if resets:
            with pytest.raises(ConnectionResetError):
                echo(connection), connection.recv(1)
        else:
            assert echo(connection) == b"one: hel"


def test_it_can_lead_to_another_server(one, connect, new_server):
    """As a virtual address after a failover. Connections to the old server are reset."""
    connection = connect()
    echo(connection)
    one.lead_to(new_server(b"two"))
    with pytest.raises(ConnectionError):
        echo(connection)
    assert echo(connect()) == b"two: hello\n"


def test_without_its_server_it_ends_connections(one, connect):
    """As a load balancer that has no server left."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = unused.getsockname()
    one.lead_to(nobody)
    with pytest.raises(ConnectionError):
        assert echo(connect()) == b""
        raise ConnectionError


def test_at_its_end_it_closes_all_connections(new_server):
    """Nothing that it started outlives the block."""
    with proxying(*new_server(b"one")) as one:
        connection = socket.create_connection(("127.0.0.1", one.port), timeout=TIMEOUT)
        echo(connection)
    with connection, pytest.raises(ConnectionError):
        assert echo(connection) == b""
        raise ConnectionError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one.port))
    assert "proxy" not in {thread.name for thread in threading.enumerate()}


def test_it_ends_by_itself(new_server, monkeypatch):
    """A spec that hangs leaves no proxy behind."""
    monkeypatch.setattr(proxy, "LIFETIME", 0.3)
    with proxying(*new_server(b"one")) as one:
        connection = socket.create_connection(("127.0.0.1", one.port), timeout=TIMEOUT)
        with connection:
            assert connection.recv(1) == b""


# The conclusions


def a_read(kind, began=1.0, seconds=0.004, status=200, **fields):
    return Read(kind, began, began + seconds, status, **fields)


DURING = [a_read(KINDS[number % len(KINDS)]) for number in range(READS)]
RESULT = Result(
    faults.Fault("It is away", bool, faults.REDIS),
    dict.fromkeys((WRITTEN, UNCHANGED, COLD), 0.002) | {WORK: 0.001},
    DURING,
    live=[a_read(LIVE)],
    work=[0.001],
    ready=a_read(""),
    ours=[Write(7, 10.0, 0.5, succeeded=True)],
    others=[Write(8, 20.0, 0.5, succeeded=True)],
    recovered=3.0,
    after=[a_read("", 3.0, cache_status="housing; hit", prices={7: 10.0, 8: 20.0})],
)


def test_a_result_that_keeps_its_promise_breaks_none():
    """If a good result were reported as broken, a report of a real fault would prove nothing."""
    assert RESULT.broken() == []


@pytest.mark.parametrize(
    ("column", "changes"),
    {
        "reads": {"during": [*DURING[1:], a_read(WRITTEN, status=0)]},
        "reads of an unchanged page": {"during": [*DURING, a_read(UNCHANGED, status=503, retry_after=True)]},
        "slowest read loses": {"during": [*[a_read(WRITTEN, seconds=0.26)] * 5, *DURING[5:]]},
        "hundredth read": {"during": [*DURING[:60], *(replace(read, ended=read.began + 0.11) for read in DURING[60:])]},
        "writes": {"ours": [Write(7, 10.0, 0.5, succeeded=False)]},
        "stale after a write of this application": {"ours": [Write(7, 11.0, 1.9, succeeded=True)]},
        "stale after a write of another program": {"others": [Write(8, 21.0, 1.9, succeeded=True)]},
        "only hits again after": {"after": [a_read("", 6.5, cache_status="housing; fwd=miss; stored")]},
        "`/health/`": {"ready": a_read("", status=0)},
        "`/health/live/`": {"live": [a_read(LIVE, status=500)]},
    }.items(),
    ids=COLUMNS,
)
def test_each_column_shows_a_broken_promise(column, changes):
    """A column that never shows one would promise nothing."""
    broken = replace(RESULT, **changes)
    assert column in {line.partition(":")[0] for line in broken.broken()}
    assert "**" in broken.row()
    assert "*" in table([broken])


def test_a_stale_read_is_as_old_as_the_first_write_that_it_lacks():
    """Only writes that had succeeded before the read began count."""
    writes = [
        Write(7, price, ended, succeeded) for price, ended, succeeded in [(10, 1.0, True), (11, 2.0, True), (12, 2.5, True), (13, 2.0, False), (14, 4.0, True)]
    ]
    assert RESULT.oldest_stale(writes, [a_read("", 3.0, prices={7: 10.0}), a_read("", 3.0, prices={8: 1.0})]) == 1.0
    assert RESULT.oldest_stale(writes, [a_read("", 3.0, prices={7: 12.0})]) == 0


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"others": [Write(8, 20.0, 0.5, succeeded=False)]}, "another program"),
        ({"others": [Write(8, 20.0, 3.5, succeeded=True)]}, "another program"),
        ({"after": [a_read("", 3.0, cache_status="housing; hit", prices={8: 20.0})]}, "this application"),
    ],
    ids=["each write failed", "each write ended after the last read", "no read shows the written property"],
)
def test_a_promise_about_stale_reads_is_broken_if_no_read_could_have_been_stale(changes, who):
    """Otherwise a writer that never succeeds would prove that no read is stale."""
    assert replace(RESULT, **changes).broken() == [
        f"stale after a write of {who}: ≤ {faults.BOUND:g} s is promised, no read to compare was measured",
    ]


def test_without_the_database_a_response_that_says_that_it_is_old_counts_only_after_the_fault():
    """RFC 5861 allows it while nobody can know better."""
    old = a_read(WRITTEN, 9.0, prices={7: 10.0, 8: 19.0}, cache_status="housing; hit; detail=stale-if-error")
    assert replace(RESULT, during=[old]).stale == (0, 0)
    assert replace(RESULT, after=[old]).stale == (0, 8.5)


def test_on_a_busy_machine_the_last_reads_may_take_longer():
    """As much longer as work of another process. The work does not depend on the service, so a service that is slow by itself is found."""
    slow = [*DURING[:60], *(replace(read, ended=read.began + 0.11) for read in DURING[60:])]
    assert "hundredth" in replace(RESULT, during=slow).broken()[0]
    assert replace(RESULT, during=slow, work=[0.02] * 10).broken() == []


def test_each_fault_has_a_name_of_its_own():
    """Results are looked up by this name, so a second fault with the same name would replace the first one's result."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_reply_that_comes_after_the_fault_began_is_swallowed():
    """Otherwise the request before the fault would still get its reply."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        proxying(*server.getsockname()) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
    ):
        connection, _ = server.accept()
        proxy.inflict(Fault(swallows=True))
        connection.sendall(b"late")

        def expect_four_bytes():
            assert proxy.swallowed == 4

        wait_for(expect_four_bytes, AssertionError)
        connection.close()
        client.close()


def open_files():
    return len([*Path("/dev/fd").iterdir()])


@pytest.mark.parametrize("requests", [b"", b"hello\n"], ids=["it connects", "it is answered"])
def test_a_proxy_that_ends_closes_the_connections_that_it_has_just_accepted(new_server, requests):
    """Python would close them later, with a warning that fails any other spec."""
    server, before = new_server(b"one"), open_files()
    for _ in range(20):
        with ExitStack() as clients, proxying(*server) as proxy:
            for _ in range(3):
                clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port))).sendall(requests)

    def expect_no_more_files():
        assert open_files() <= before

    wait_for(expect_no_more_files, AssertionError)


def test_a_proxy_may_end_while_it_refuses_connections(new_server):
    """A spec that fails during a fault leaves no thread and no port behind."""
    with proxying(*new_server(b"one")) as proxy:
        proxy.inflict(Fault(refuses=True))
        proxy.inflict(Fault(refuses=True))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
