"""Random histories of reads and writes. After any writes in any order, the cached response equals the database's, byte for byte.

Concurrent operations have no single order. Their responses are correct if the history is linearizable: each read and write can have one instant,
between its beginning and its end, at which it took effect. A write that the journal does not know may be missing in reads, but only within the bound.
"""

import json
import math
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
import redis
from django.db import connection, transaction
from django.test import Client
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from housing.freshness.settings import SETTINGS
from housing.models import Agent, Location, Office, Property, PropertyImage
from tests import ROOT
from tests.exploration.linearizability import Operation, reaching_back, violation
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.responses import VARIANTS, ask
from tests.fixtures.rows import a_property, make_properties, saved
from tests.stacks import TIMEOUT

CITIES, PRICES = ["Springfield", "Shelbyville"], [100, 200, 300]
MODELS = st.sampled_from([Property, Agent, Office, Location, PropertyImage])
COLUMNS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Property: {
        "title": st.sampled_from(["A barn", "A castle"]),
        "status": st.sampled_from(Property.Status.values),
        "property_type": st.sampled_from(Property.Type.values),
        "price": st.sampled_from(PRICES),
        "bedrooms": st.sampled_from([None, 1, 4]),
    },
    Agent: {"name": st.sampled_from(["Ann", "Bob"])},
    Office: {"name": st.sampled_from(["Harbour", "Hill"])},
    Location: {"city": st.sampled_from(CITIES), "zip_code": st.sampled_from(["1", "2"])},
    PropertyImage: {"caption": st.sampled_from(["front", "back"])},
}
OWNERS = {Property: ["agent", "location"], Agent: ["office"], PropertyImage: ["property"]}
FILTERS = st.fixed_dictionaries(
    {"page_size": st.sampled_from([1, 2, 20])},
    optional={
        "city": st.sampled_from(CITIES),
        "status": st.sampled_from(Property.Status.values),
        "property_type": st.sampled_from(Property.Type.values),
        "agent": st.integers(1, 4),
        "office": st.integers(1, 4),
        "min_price": st.sampled_from(PRICES),
        "max_price": st.sampled_from(PRICES),
        "min_bedrooms": st.sampled_from([0, 2]),
        "search": st.sampled_from(["barn", "garden"]),
        "ordering": st.sampled_from(["created_at", "-created_at", "price", "-price"]),
    },
)

# One operation after another


class History(RuleBasedStateMachine):
    """Writes of every kind, inside and outside transactions, with reads in between."""

    warm: set[str]

    @initialize()
    def a_small_portal(self):
        """Three properties, and a cold cache."""
        for model in (PropertyImage, Property, Agent, Office, Location):
            model.objects.all().delete()
        homes = saved(*(a_property(number, price=PRICES[number], location=Location(city=CITIES[number % 2])) for number in range(3)))
        PropertyImage.objects.create(property=homes[0], url="https://images.example.com/0.jpg")
        clear_the_cache()
        self.client, self.warm = Client(), set()

    def some(self, model, choice):
        """One of the model's rows, or a new one if there are no rows."""
        rows = list(model.objects.order_by("pk")) or [self.new_rows()[model]]
        return rows[choice % len(rows)]

    def new_rows(self):
        """A new property and the rows that belong to it, by model."""
        [home] = saved(a_property(price=PRICES[0]))
        image = PropertyImage.objects.create(property=home, url="https://images.example.com/0.jpg")
        return {Property: home, Agent: home.agent, Office: home.agent.office, Location: home.location, PropertyImage: image}

    def saves(self, data):
        """Save a row. Hypothesis draws the row, the column or owner, `update_fields` or not, and whether the row was read with select_for_update()."""
        model, choice = data.draw(MODELS), data.draw(st.integers(0, 9))
        row = self.some(model, choice)
        locked = data.draw(st.booleans())
        with transaction.atomic():
            if locked:
                row = model.objects.select_for_update().get(pk=row.pk)
            column = data.draw(st.sampled_from([*COLUMNS[model], *OWNERS.get(model, [])]))
            if column in COLUMNS[model]:
                setattr(row, column, data.draw(COLUMNS[model][column]))
            else:
                setattr(row, column, self.some(model._meta.get_field(column).related_model, data.draw(st.integers(0, 9))))
            row.save(update_fields=data.draw(st.sampled_from([None, [column]])))

    def creates_an_image(self, data):
        """Create an image of a property."""
        PropertyImage.objects.create(property=self.some(Property, data.draw(st.integers(0, 9))), url="https://images.example.com/new.jpg")

    def creates_a_property(self, data):
        """Create a property by a save."""
        some = a_property(data.draw(st.integers(0, 3)), price=data.draw(st.sampled_from(PRICES)), agent=self.some(Agent, 0), location=self.some(Location, 0))
        some.save()

    def deletes(self, data):
        """Delete a row, with the rows that depend on it."""
        self.some(data.draw(MODELS), data.draw(st.integers(0, 9))).delete()

    def updates(self, data):
        """Update many rows at once, which sends no signal."""
        Property.objects.filter(price=data.draw(st.sampled_from(PRICES))).update(price=data.draw(st.sampled_from(PRICES)))

    WRITES = ("saves", "saves", "saves", "creates_an_image", "creates_a_property", "deletes", "updates")

    @rule(data=st.data())
    def write(self, data):
        """One write in autocommit mode."""
        getattr(self, data.draw(st.sampled_from(self.WRITES)))(data)

    @rule(data=st.data(), releases=st.lists(st.booleans(), min_size=1, max_size=3), commits=st.booleans())
    def write_in_a_transaction(self, data, releases, commits):
        """Several writes, each in a savepoint that is released or rolled back."""
        with transaction.atomic():
            for released in releases:
                with transaction.atomic():
                    getattr(self, data.draw(st.sampled_from(self.WRITES)))(data)
                    transaction.set_rollback(not released)
            transaction.set_rollback(not commits)

    @rule(parameters=FILTERS, steps=st.lists(st.sampled_from(["next", "next", "previous"]), max_size=3))
    def read_a_list(self, parameters, steps):
        """Read a page, then the pages that it links to, or itself if it has no such link."""
        link = f"?{urlencode(parameters)}"
        for step in steps:
            link = self.read(link).json[step] or link
        self.read(link)

    @rule(choice=st.integers(0, 9))
    def read_a_detail(self, choice):
        """Read one property."""
        self.read(f"/{self.some(Property, choice).pk}")

    @precondition(lambda self: self.warm)
    @rule(choice=st.integers(0, 99))
    def read_again(self, choice):
        """Repeat an earlier read. Its entry is likely to be there, so this would find a stale one."""
        self.read(sorted(self.warm)[choice % len(self.warm)])

    def read(self, path):
        """Read from the cached and from the optimized endpoint, and compare the two. This is the promise."""
        cached, truth = ask(self.client, f"cached{path}"), ask(self.client, f"optimized{path}")
        assert (cached.status, cached.body) == (truth.status, truth.body)
        self.warm.add(path)
        return cached


@pytest.mark.slow
@pytest.mark.usefixtures("transactional_db")
def test_no_history_of_writes_makes_a_response_stale():
    """Hypothesis draws the histories, the same in every run. A failing one shrinks to the shortest."""
    assert set(VARIANTS) >= {"cached", "optimized"}
    run_state_machine_as_test(
        History,
        settings=settings(max_examples=25, stateful_step_count=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)),
    )


# Concurrent operations, with faults


CLIENT = """
import json, os, random, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from wsgiref.util import setup_testing_defaults
from django.conf import settings

settings.FRESHNESS_LEASE, settings.LOGGING["loggers"]["housing"]["level"] = 2.0, "CRITICAL"
settings.CACHES["default"]["OPTIONS"]["SOCKET_TIMEOUT"] = 0.25
from housing.wsgi import application
from housing.freshness import outbox
from housing.models import Property

here, write_row = threading.local(), outbox.write

def report(*line):
    os.write(1, (json.dumps(line) + "\\n").encode())

def report_and_write_row(*row):
    report("late", here.client)
    write_row(*row)

outbox.write = report_and_write_row

def get(path):
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    headers = {}
    response = application(environ, lambda _, found: headers.update(found))
    body = b"".join(response)
    getattr(response, "close", bool)()
    return body, headers

def write(key, price, by_save):
    if not by_save:
        Property.objects.filter(pk=key).update(price=price)
        return
    mine = Property.objects.get(pk=key)
    mine.price = price
    mine.save(update_fields=["price"])

def write_once(client, key, price, dice):
    report("begins", client, key, price, time.monotonic())
    write(key, price, by_save=dice.random() < 0.8)
    report("wrote", client, time.monotonic())

def read_once(client, key, dice):
    path, began = endpoint + f"{key}/" * (dice.random() < 0.8), time.monotonic()
    body, headers = get(path)
    ended, found = time.monotonic(), json.loads(body)
    prices = {home["id"]: int(home["price"].split(".")[0]) for home in found.get("results", [found])}
    report("read", client, prices, began, ended, headers["Cache-Status"])
    return "unreachable" in headers["Cache-Status"]

SHARE_OF_WRITES = {False: 0.03, True: 0.2}  # whether the last read was without Redis

def work(client, number, operations, keys):
    here.client, dice, share = client, random.Random(number), SHARE_OF_WRITES[False]
    for price in range(number, number + operations):
        key = dice.choice(keys)
        if dice.random() < share:
            write_once(client, key, price, dice)
            continue
        share = SHARE_OF_WRITES[read_once(client, key, dice)]

endpoint, workers = json.loads(sys.argv[1])
with ThreadPoolExecutor() as threads:
    list(threads.map(work, *zip(*workers)))
"""
"""A process that reads and writes prices, each of which is written only once. It prints a line for each read, for each beginning and end of a write, and
before it writes a row to the outbox. Without Redis every fifth operation is a write, so that there are enough.

`time.monotonic()` is CLOCK_MONOTONIC on Linux: one clock for all processes.
"""

CLIENTS = [("T1",), ("T2",), ("T3",), ("T4",), ("T5", "T6"), ("T7", "T8")]
"""The clients, by process. The last two processes have two threads each."""

CUT_OFF, NOWHERE = ("T9",), "redis://127.0.0.1:1"
"""A client that cannot reach Redis, while the others can."""

SHARED = 4
"""Only the clients write the first properties. The client that is cut off and another program write the others, too."""

BOUND = SETTINGS["MAX_STALENESS"].default

OPERATIONS = 104_000
"""The number of operations. `--operations` sets a smaller number."""

PAUSES = [0.4, 0.4, 1.2, 1.2]
"""How many seconds Redis sends no reply, each time. After a pause that is shorter than the bound, entries may be stale and still be served."""

FAULTS = ["kill"] * 20 + ["flush"] * 4 + ["save"] * 2 + ["restart"] * 3 + ["pause"] * len(PAUSES)
"""The faults of a run, each after a seeded number of operations. A kill hits the process that begins the next write, a few operations later.

After a SAVE Redis restarts from an old dump.
"""


@dataclass
class Process:
    """A running process of some clients. `rest` is the incomplete last line of its output."""

    running: subprocess.Popen
    clients: tuple[str, ...]
    rest: bytes = b""


class Run:
    """A run of all clients with its faults, and the history of each property."""

    def __init__(self, server, keys, log, operations):
        self.server, self.keys, self.log = server, keys, log
        self.database = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(connection.settings_dict)
        self.environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "housing.settings",
            "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
            "DATABASE_URL": self.database,
            "REDIS_URL": server.url,
        }
        self.selector, self.numbers, self.dice = selectors.DefaultSelector(), count(1_000_000, OPERATIONS), random.Random(8)
        self.left = {client: operations // 8 for clients in CLIENTS for client in clients} | dict.fromkeys(CUT_OFF, operations // 20)
        self.histories, self.open, self.late, self.foreign_writes = {key: [] for key in keys}, {}, set(), []
        instants = self.dice.sample(range(operations // 20, operations * 9 // 10), len(FAULTS))
        self.due = dict(zip(instants, self.dice.sample(FAULTS, len(FAULTS)), strict=True))
        self.to_kill, self.doomed, self.counted = 0, [], Counter()
        self.pauses, self.pause, self.foreign_prices = iter(PAUSES), threading.Timer(0, bool), count(next(self.numbers))
        self.pause.start()

    def go(self):
        """Run all clients to their end."""
        began = time.monotonic()
        with ExitStack() as self.ends:
            self.program = self.ends.enter_context(psycopg.connect(self.database, autocommit=True))
            self.another_program = self.ends.enter_context(ThreadPoolExecutor(1))
            self.ends.callback(self.await_redis)
            for clients in (*CLIENTS, CUT_OFF):
                self.start(clients)
            while self.selector.get_map():
                heard = self.selector.select(TIMEOUT)
                assert heard, f"No client has printed a line for {TIMEOUT} s."
                for key, _ in heard:
                    self.hear(key.data)
            for write in self.foreign_writes:
                write.result()
        self.counted["seconds"] = round(time.monotonic() - began)

    def start(self, clients):
        """Start a process for these clients, whose prices are all different."""
        keys, environment = self.keys, self.environment
        if clients == CUT_OFF:
            keys, environment = keys[SHARED:], environment | {"REDIS_URL": NOWHERE}
        work = [(client, next(self.numbers), self.left[client], keys) for client in clients]
        command = [sys.executable, "-c", CLIENT, json.dumps([VARIANTS["cached"], work])]
        with self.log.open("a") as log:
            running = self.ends.enter_context(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log))
        self.ends.callback(running.kill)
        self.selector.register(running.stdout, selectors.EVENT_READ, Process(running, clients))

    def hear(self, process):
        """Read the output of a process. At its end check the exit code, and replace it if it was killed."""
        output = os.read(process.running.stdout.fileno(), 1 << 16)
        *lines, process.rest = (process.rest + output).split(b"\n")
        for line in lines:
            self.note(process, *json.loads(line))
        if not output:
            self.selector.unregister(process.running.stdout)
            killed = process.running.wait() == -signal.SIGKILL
            self.counted["kills"] += killed
            assert killed or process.running.returncode == 0, self.log.read_text()[-2_000:]
            self.to_kill += self.is_doomed(process) and not killed  # it ended before its kill, which another process gets
            for client in process.clients:
                self.end(client, math.inf)
            if killed and any(self.left[client] for client in process.clients):
                self.start(process.clients)

    def is_doomed(self, process):
        """Whether a kill is due for this process, or has hit it."""
        return any(running is process.running for _, running in self.doomed)

    def note(self, process, event, client, *facts):
        """Record one line of output."""
        if event == "begins":
            self.open[client] = facts
            if self.to_kill and not self.is_doomed(process):
                self.to_kill -= 1
                self.doomed.append((self.counted["operations"] + self.dice.randrange(1, 8), process.running))
        elif event == "wrote":
            self.end(client, *facts)
        elif event == "late":
            self.late.add(client)
        else:
            prices, began, ended, came_from = facts
            for key, price in prices.items():
                self.histories[int(key)].append(Operation(client, "read", price, began, ended))
            self.counted["hits"] += came_from == "housing; hit"
            self.operation(client)

    def end(self, client, ended):
        """Record the end of the client's open write, if it has one."""
        if client in self.open:
            key, price, began = self.open.pop(client)
            self.histories[key].append(Operation(client, "write", price, began, ended, late=client in self.late))
            self.counted["unknown writes" if ended == math.inf else "writes"] += 1
            self.counted["writes without a lease"] += client in self.late
            self.late.discard(client)
            self.operation(client)

    def write_past_the_journal(self):
        """Let another program set a price. A trigger leaves a row in the outbox."""
        key, price = self.dice.choice(self.keys[SHARED:]), next(self.foreign_prices)
        self.foreign_writes.append(self.another_program.submit(self.write_as_another_program, key, price))

    def write_as_another_program(self, key, price):
        """Set a price with the driver alone. It may have to wait for a client's lock, so it has a thread."""
        began = time.monotonic()
        self.program.execute("UPDATE housing_property SET price = %s WHERE id = %s", [price, key])
        self.histories[key].append(Operation("another program", "write", price, began, time.monotonic(), late=True))
        self.counted["foreign writes"] += 1

    def operation(self, client):
        """Count one operation, and cause the fault that is due after it."""
        self.left[client] -= 1
        self.counted["operations"] += 1
        for at, running in self.doomed:
            if at == self.counted["operations"]:
                running.kill()
        if self.counted["operations"] % 100 == 0:
            self.write_past_the_journal()
        fault = self.due.get(self.counted["operations"])
        if fault == "kill":
            self.to_kill += 1
        elif fault:
            self.await_redis()
            with redis.Redis.from_url(self.server.url) as admin:
                {"flush": admin.flushall, "save": admin.save, "restart": self.server.restart, "pause": self.pause_redis}[fault]()
            self.counted[fault] += 1

    def pause_redis(self):
        """Let Redis send no reply for a while. A timer ends the pause, because clients go on."""
        self.server.pause()
        self.pause = threading.Timer(next(self.pauses), self.server.unpause)
        self.pause.start()

    def await_redis(self):
        """Wait until a pause has ended."""
        self.pause.join()


def overlaps(history):
    """The number of overlapping pairs of a read and a write. Operations whose end is unknown are not counted."""
    known = [operation for operation in history if operation.ended < math.inf]
    events = [(operation.began, 1, operation.kind) for operation in known] + [(operation.ended, -1, operation.kind) for operation in known]
    going_on, pairs = {"read": 0, "write": 0}, 0
    for _, step, kind in sorted(events):
        going_on[kind] += step
        pairs += going_on["read" if kind == "write" else "write"] if step == 1 else 0
    return pairs


def oldest(history):
    """How many seconds before some read a write ended that certainly came after the one that it shows. 0 if no read missed a write."""
    writes = sorted((operation for operation in history if operation.kind == "write"), key=lambda write: write.began)
    began, ended = [write.began for write in writes], {write.value: write.ended for write in writes}
    first_end = [*accumulate((write.ended for write in reversed(writes)), min, initial=math.inf)][::-1]
    reads = [operation for operation in history if operation.kind == "read"]
    return max(0.0, *(read.began - first_end[bisect_right(began, ended.get(read.value, -math.inf))] for read in reads))


AT_LEAST = {
    "operations": 100_000,
    "overlaps": 8_000,
    "hits": 50_000,
    "writes": 2_500,
    "foreign writes": 1_000,
    "writes without a lease": 500,
    "bounded reads": 10_000,
}
"""The least that a run of all `OPERATIONS` must count, and a shorter run in proportion. Otherwise its result says nothing. Both have all faults."""


@pytest.mark.slow
@pytest.mark.only("real")
@pytest.mark.usefixtures("transactional_db")
def test_clients_see_each_write_at_once_or_within_the_bound_while_processes_are_killed_and_redis_comes_and_goes(
    new_redis, tmp_path, record_property, pytestconfig
):
    """The price of each property is one register, whether a list or a detail shows it. In 100,000 operations no client sees an outdated price, or an old
    price after a new one, except within the bound after a write by another program or without Redis.
    """
    homes = make_properties(SHARED + 2)
    operations = pytestconfig.option.operations or OPERATIONS
    run = Run(new_redis(), [home.pk for home in homes], tmp_path / "clients.log", operations)
    run.go()
    histories = run.histories.values()
    run.counted["overlaps"] = sum(map(overlaps, histories))
    run.counted["bounded reads"] = sum(a.began < b.began for history in histories for a, b in zip(reaching_back(history, BOUND), history, strict=True))
    stalest = max(map(oldest, histories))
    record_property("counted", ", ".join(f"{number:,} {what}" for what, number in sorted(run.counted.items())) + f", oldest read {stalest:.3f} s")

    violations = [found for home in homes if (found := violation(run.histories[home.pk], int(home.price), BOUND))]
    assert not violations, "\n".join(violations)
    assert stalest <= BOUND
    assert {what: run.counted[what] for what, least in AT_LEAST.items() if run.counted[what] < least * operations // OPERATIONS} == {}
    assert [run.counted[fault] for fault in ("kills", "flush", "restart", "pause")] == [20, 4, 3, len(PAUSES)]
