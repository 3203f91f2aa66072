"""Sabotages of REDIS_URL, and of the way to the primary that Sentinel names."""

from tests.sabotages import Sabotage

URL = "test_connections.py::test_a_redis_url_that_cannot_work_is_refused_in_one_line_without_its_password"
SENTINELS = "test_connections.py::test_the_parts_of_a_url_with_sentinels_reach_the_servers_and_the_sentinels"

CONNECTIONS = (
    Sabotage("REDIS_URL: a cluster is accepted", "redis_url.py", 'if "cluster" in scheme:', "if False:", f"{URL}[a cluster]"),
    Sabotage(
        "REDIS_URL: the first of several hosts is used",
        "redis_url.py",
        "_require(not several, ",
        "_require(True, ",
        f"{URL}[several hosts]",
    ),
    Sabotage("REDIS_URL: port 0 is accepted", "redis_url.py", "_require(port, scheme", "_require(True, scheme", f"{URL}[port 0]"),
    Sabotage("REDIS_URL: a service may be missing", "redis_url.py", "_require(service, scheme", "_require(True, scheme", f"{URL}[no service]"),
    Sabotage(
        "REDIS_URL: an option that redis-py does not accept is found at the first request",
        "redis_url.py",
        "ConnectionPool(connection, **keywords).make_connection()",
        "ConnectionPool(connection, **keywords)",
        f"{URL}[an unknown option]",
    ),
    Sabotage(
        "REDIS_URL: a password with a hash hides the host",
        "redis_url.py",
        'parts.fragment or "@" in login',
        '"@" in login',
        f"{URL}[a password with a hash]",
    ),
    Sabotage(
        "REDIS_URL: a message shows the whole URL",
        "redis_url.py",
        "REDIS_URL does not begin",
        "REDIS_URL {url} does not begin",
        f"{URL}[another scheme]",
    ),
    Sabotage(
        "REDIS_URL: the service does not check it at start",
        "environment.py",
        '"REDIS_URL": Variable(redis_url,',
        '"REDIS_URL": Variable(secret,',
        "test_environment.py::test_a_value_that_cannot_be_used_ends_every_start_with_one_line[REDIS_URL-gunicorn]",
    ),
    Sabotage(
        "Sentinel: the sentinels get no password",
        "redis_url.py",
        "if name in AT_SENTINELS}",
        "if name not in AT_SENTINELS}",
        SENTINELS,
    ),
    Sabotage(
        "Sentinel: the name of the service becomes lower case",
        "redis_url.py",
        '"service_name": service, ',
        "",
        SENTINELS,
    ),
    Sabotage(
        "Sentinel: an unreachable sentinel is tried several times",
        "redis_url.py",
        '"retry": Retry(NoBackoff(), 0), ',
        '"retry": Retry(NoBackoff(), 3), ',
        SENTINELS,
    ),
    Sabotage(
        "Sentinel: two caches with a service of one name share connections",
        "redis_url.py",
        "#{scheme}://{_hosts(parts).replace(',', ';')}",
        "",
        SENTINELS,
    ),
    Sabotage(
        "Sentinel: TLS is not used for the sentinels",
        "redis_url.py",
        'shared["ssl"] = True',
        'options["CONNECTION_POOL_KWARGS"]["ssl"] = True',
        "test_connections.py::test_tls_of_a_url_with_sentinels_is_used_for_the_servers_and_the_sentinels",
    ),
    Sabotage(
        "Sentinel: after a failover the call does not try again",
        "freshness/journal.py",
        "except (refusals.NoScriptError, refusals.ConnectionError):",
        "except refusals.NoScriptError:",
        "test_servers.py::test_after_a_failover_the_next_call_uses_the_new_primary[cut]",
    ),
    Sabotage(
        "Sentinel: a message does not have the address of the primary",
        "freshness/journal.py",
        "if isinstance(pool, SentinelConnectionPool):",
        "if False:",
        "test_servers.py::test_a_message_has_the_address_of_the_primary_that_the_sentinels_named",
    ),
    Sabotage(
        "Sentinel: check --deploy does not warn of a replaced primary that accepts writes",
        "freshness/checks.py",
        "return [*_eviction(info), *_failover(info)]",
        "return [*_eviction(info)]",
        "test_servers.py::test_check_deploy_warns_if_a_replaced_primary_would_accept_writes",
    ),
    Sabotage(
        "PostgreSQL: a silent connection is trusted for ever",
        "freshness/postgresql/base.py",
        "monotonic() - self._checked < CHECKED and self._is_silent()",
        "self._is_silent()",
        "test_slow_database.py::test_a_connection_is_checked_again_after_five_seconds",
        "real",
    ),
    Sabotage(
        "PostgreSQL: a connection that was checked lately is trusted although its socket is not silent",
        "freshness/postgresql/base.py",
        "monotonic() - self._checked < CHECKED and self._is_silent()",
        "monotonic() - self._checked < CHECKED",
        "test_slow_database.py::test_a_connection_that_the_server_has_ended_is_replaced_before_the_query",
        "real",
    ),
    Sabotage(
        "PostgreSQL: each request checks its connection with a statement",
        "freshness/postgresql/base.py",
        "self._checked = monotonic()",
        "pass",
        "test_slow_database.py::test_a_request_sends_postgresql_nothing_but_its_query",
        "real",
    ),
    Sabotage(
        "PostgreSQL: a time that is no date of Python's calendar has an error of its own",
        "freshness/postgresql/base.py",
        "suppress(ValueError):  # infinity, or another DateStyle",
        "suppress(KeyError):",
        "test_drivers.py::test_a_time_of_postgresql_is_read_as_django_reads_it[infinity]",
    ),
)
