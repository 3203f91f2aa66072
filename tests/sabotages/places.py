"""Sabotages of the limits of entries, and of created rows that are not the newest."""

from tests.sabotages import Sabotage

RACE = "test_newest.py::test_a_created_row_is_on_the_page_of_its_time_in_every_order_of_steps[one preemption-all]"
OLDER = "test_newest.py::test_a_created_listing_that_is_not_the_newest_is_on_the_page_of_its_time[all-a newer and an older one]"

NEWEST = (
    Sabotage(
        "newest: a page behind a cursor depends on each new listing",
        "freshness/dependencies.py",
        "if tags and limits:",
        "if False:",
        "test_newest.py::test_a_new_listing_leaves_the_pages_behind_a_cursor_warm[all]",
    ),
    Sabotage(
        "newest: a limited entry has no tag of rows that are not the newest",
        "freshness/dependencies.py",
        "self.tags.add(table.not_newest)",
        "pass",
        OLDER,
    ),
    Sabotage(
        "newest: any comparison counts as a limit",
        "freshness/dependencies.py",
        "if type(lookup) not in (LessThan, LessThanOrEqual):",
        "if not hasattr(lookup, 'lhs'):",
        "test_newest.py::test_an_entry_is_limited_by_a_condition_on_a_position_in_time[(created_at, id) > a position]",
    ),
    Sabotage(
        "newest: any column counts as one of times with an index",
        "freshness/dependencies.py",
        "is_column = isinstance(left, Col) and left.alias == alias and left.target.column in columns",
        "is_column = True",
        "test_newest.py::test_an_entry_is_limited_by_a_condition_on_a_position_in_time[a column without an index]",
    ),
    Sabotage(
        "newest: a write compares the newest of its rows",
        "freshness/connection.py",
        "oldest[column] = min(time, oldest.get(column, time))",
        "oldest[column] = max(time, oldest.get(column, time))",
        OLDER,
    ),
    Sabotage(
        "newest: an INSERT of several rows notes the newest",
        "freshness/compiler.py",
        "self.connection.created_at(table, column, min(known))",
        "self.connection.created_at(table, column, max(known))",
        "test_newest.py::test_the_oldest_row_of_an_insert_decides[all]",
    ),
    Sabotage(
        "newest: an unknown time counts as the newest",
        "freshness/compiler.py",
        "return len(known) == len(times)",
        "return True",
        "test_newest.py::test_a_time_that_is_not_known_counts_as_old[all]",
    ),
    Sabotage(
        "newest: the times of a released savepoint are lost",
        "freshness/connection.py",
        "self._note(scope.oldest)",
        "pass",
        "test_newest.py::test_the_times_of_a_released_savepoint_count[all]",
    ),
    Sabotage(
        "newest: the outbox has no tag of rows that are not the newest",
        "freshness/connection.py",
        "outbox.write(self, {*plain, *old})",
        "outbox.write(self, plain)",
        "test_newest.py::test_a_row_that_is_created_without_redis_counts_as_old[all]",
    ),
    Sabotage(
        "newest: a trigger writes no tag of rows that are not the newest",
        "freshness/postgresql/outbox.sql",
        ", ('':<'', '''', '''', true)",
        "",
        "test_newest.py::test_a_row_that_another_program_creates_counts_as_old[all]",
        "real",
    ),
    Sabotage(
        "newest: a store does not compare the rows that were created while it read",
        "freshness/journal.lua",
        "tags .. '\\n' .. created)",
        "tags)",
        "test_newest.py::test_a_row_that_is_created_while_a_response_is_read_counts_as_old",
    ),
    Sabotage(
        "newest: the last limit counts, and not the latest",
        "freshness/journal.lua",
        "call('ZADD', journal, 'LT', text(-math.max(",
        "call('ZADD', journal, text(-math.max(",
        "test_newest.py::test_a_row_is_the_newest_if_it_is_newer_than_all_limits_of_entries[9-True]",
    ),
    Sabotage(
        "newest: a limit before 1970 is an instant",
        "freshness/journal.lua",
        "text(-math.max(tonumber(time), 2))",
        "text(-tonumber(time))",
        "test_newest.py::test_a_limit_before_1970_counts_as_one_of_1970[-5000000000000000]",
    ),
    Sabotage(
        "newest: a row at the limit counts as newer",
        "freshness/journal.lua",
        "tonumber(time) <= -limit",
        "tonumber(time) < -limit",
        "test_newest.py::test_a_row_is_the_newest_if_it_is_newer_than_all_limits_of_entries[10-True]",
    ),
    Sabotage(
        "newest: no created row counts as old",
        "freshness/journal.lua",
        "  both(more, not_newest(oldest))\n",
        "",
        RACE,
    ),
    Sabotage(
        "newest: a time alone counts as a limit",
        "freshness/dependencies.py",
        "if type(position) is RowValue and not position.extra else None",  # plain-words: code
        "if type(position) is RowValue and not position.extra else position",  # plain-words: code
        "test_newest.py::test_an_entry_is_limited_by_a_condition_on_a_position_in_time[created_at < a time]",
    ),
)
