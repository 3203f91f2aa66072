"""Sabotages of the instruments, and of the definition of transaction control that they share with `Server-Timing`."""

from tests.sabotages import Sabotage

FILE = "../tests/instruments.py"

INSTRUMENTS = (
    Sabotage(
        "the work of every thread is a block's own",
        FILE,
        "if seen.threads or any(seen is each for each in own)",
        "if True",
        "test_counting.py::test_another_thread_is_refused_or_counted_or_ignored[queries]",
    ),
    Sabotage(
        "another thread is silently ignored",
        FILE,
        "if seen.elsewhere and seen.threads is None:",
        "if False:",
        "test_counting.py::test_a_live_server_is_another_thread",
    ),
    Sabotage(
        "sqlite3 is not watched below Django's cursor",
        FILE,
        "            connection.set_trace_callback(callback)",
        "            pass",
        "test_counting.py::test_a_statement_is_counted_below_djangos_cursor_on_sqlite[executescript]",
    ),
    Sabotage(
        "a new connection of sqlite3 is not watched",
        FILE,
        "    _trace(opened[-1:], _traced)",
        "    pass",
        "test_counting.py::test_a_statement_is_counted_below_djangos_cursor_on_sqlite[a new connection of the driver]",
    ),
    Sabotage(
        "psycopg is not watched below Django's cursor",
        FILE,
        '            _note_sql(next(iter((*args, *kwargs.values())), b""), cursor, below=True)',
        "            pass",
        "test_counting.py::test_every_method_of_psycopgs_cursors_that_sends_a_statement_is_counted",
    ),
    Sabotage(
        "a statement in bytes is shown as Python's literal",
        FILE,
        'sql.decode(errors="replace") if isinstance(sql, bytes) else ',  # plain-words: code
        "",
        "test_counting.py::test_every_method_of_psycopgs_cursors_that_sends_a_statement_is_counted",
    ),
    Sabotage(
        "a statement counts in Django and in its driver",
        FILE,
        "execute(cursor, sql, params, many, _covered(executor))",
        "execute(cursor, sql, params, many, executor)",
        "test_counting.py::test_a_statement_through_djangos_cursor_is_counted_once",
    ),
    Sabotage(
        "the settings of a new connection count as queries",
        FILE,
        "_covered(BaseDatabaseWrapper.ensure_connection)",
        "BaseDatabaseWrapper.ensure_connection",
        "test_counting.py::test_opening_a_connection_is_not_counted",
    ),
    Sabotage(
        "the rows of `for row in cursor` are not counted",
        FILE,
        "            Queries.note_reply(1)",
        "            pass",
        "test_counting.py::test_rows_are_counted_however_they_are_fetched",
    ),
    Sabotage(
        "a savepoint behind a comment is a query",
        FILE,
        '    COMMENTS + r"(BEGIN',
        '    r"(BEGIN',
        "test_counting.py::test_transaction_control_is_recognized_behind_a_comment",
    ),
    Sabotage(
        "redis.asyncio is not watched",
        FILE,
        "{AbstractConnection, AsyncConnection}",
        "{AbstractConnection}",
        "test_counting.py::test_round_trips_and_bytes_of_redis_asyncio_are_counted",
    ),
    Sabotage(
        "an overridden method of redis-py counts twice",
        FILE,
        "if any(command is sent for sent in CALL.get()[1:]):",
        "if False:",
        "test_counting.py::test_a_subclass_that_calls_super_is_counted_once",
    ),
    Sabotage(
        "the bytes of a real server are computed, too",
        FILE,
        "then = bool if isinstance(stream, tuple(STREAMS)) else",  # plain-words: code
        "then =",
        "test_counting.py::test_round_trips_and_bytes_are_counted_for_every_connection",
    ),
    Sabotage(
        "zero passes if nothing is attached",
        FILE,
        "(why := self.unattached())",
        '(why := "")',
        "test_counting.py::test_zero_round_trips_fail_without_a_connection_of_redis_py",
    ),
    Sabotage(
        "repeated INSERTs lead to select_related()",
        FILE,
        '"INSERT": INSERTS',
        '"INSERT": N_PLUS_1',
        "test_instruments.py::test_repeated_writes_lead_to_the_statement_that_writes_all_rows",
    ),
    Sabotage(
        "at_most() does not allow fewer", FILE, "(promised, le,", "(promised, eq,", "test_instruments.py::test_at_most_allows_fewer_queries_and_fails_for_more"
    ),
    Sabotage(
        "the calls of another thread are silently ignored",
        FILE,
        "if others and threads is None:",
        "if False:",
        "test_instruments.py::test_calls_of_another_thread_are_refused_or_counted_or_ignored",
    ),
    Sabotage(
        "the profiled round shifts the baselines",
        FILE,
        "baselines[WARM_UP : WARM_UP + rounds]",
        "baselines[-rounds:]",
        "test_instruments.py::test_the_round_that_is_profiled_does_not_shift_the_baselines",
    ),
    Sabotage(
        "a savepoint is a query of Server-Timing",
        "freshness/statements.py",
        r"SET\s+TRANSACTION|SAVEPOINT|RELEASE",
        r"SET\s+TRANSACTION",
        "test_counting.py::test_server_timing_counts_the_same_statements_as_the_instruments",
    ),
    Sabotage(
        "what pytest does with each line of the log is timed",
        FILE,
        "        root.removeHandler(handler)",
        "        pass",
        "test_instruments.py::test_log_lines_are_not_formatted_for_pytest_while_they_are_timed",
    ),
    Sabotage(
        "an undecided comparison of two trees ends",
        "../tests/measurements/compare.py",
        "if all(verdict.decided for verdict in verdicts):",
        "if verdicts:",
        "test_compare.py::test_an_undecided_comparison_goes_on_with_more_processes[as fast in one half of the rounds and slower in the other]",
    ),
    Sabotage(
        "the specs of a stress test have a session of their own, so the load leaves them half of the cores",
        "../tests/measurements/stress.py",
        "process_group=0",
        "start_new_session=True",
        "test_stress.py::test_the_specs_get_no_larger_share_of_the_cores_than_each_process_of_the_load",
    ),
    Sabotage(
        "an interrupted stress test ends the specs, and not their workers",
        "../tests/measurements/stress.py",
        "os.killpg(process.pid, signal.SIGKILL)",
        "os.kill(process.pid, signal.SIGKILL)",
        "test_stress.py::test_an_interrupted_stress_test_leaves_no_process_behind",
    ),
    Sabotage(
        "a fault during which no read could have been stale keeps its promise",
        "../tests/measurements/faults.py",
        'cls("no read to compare", False)',
        'cls("no read to compare", True)',
        "test_proxy.py::test_a_promise_about_stale_reads_is_broken_if_no_read_could_have_been_stale",
    ),
    Sabotage(
        "a load test counts reads of other properties as compared",
        "../tests/measurements/load.py",
        "first.get(key, math.inf) < read.began",
        "first.get(key, 0) < read.began",
        "test_load.py::test_a_read_is_only_compared_if_it_began_after_a_write_of_a_property_that_it_shows",
    ),
    Sabotage(
        "the ids of two tables are only as far apart as earlier specs left them",
        "../tests/fixtures/rows.py",
        "other.pk = newest + 25 * number",
        "other.pk = row.pk + 25 * number",
        "test_stacks.py::test_no_row_of_a_spec_has_the_id_of_a_row_of_another_table",
    ),
    Sabotage(
        "new prices in the portal are deletions, and are counted as new prices",
        "../tests/measurements/portal.py",
        'if kind == "price":',
        'if kind == "a price":',
        "test_precision.py::test_a_write_to_the_portal_changes_what_its_kind_says",
    ),
    Sabotage(
        "the interval of a page of the portal ends where it should begin",
        "../tests/measurements/portal.py",
        "self.interval = ends[::-1] if descending else ends",  # plain-words: code
        "self.interval = ends",
        "test_precision.py::test_the_interval_of_a_page_reaches_from_the_row_before_it_to_the_row_after_it",
    ),
)
