"""Sabotages of the commit: code that mutmut does not mutate, because it is decorated or not in a function."""

from tests.sabotages import Sabotage

COMMIT = (
    Sabotage(
        "a COMMIT does not close its lease",
        "freshness/connection.py",
        "journal.close(lease)",
        "pass",
        "test_invalidation.py::test_a_saved_price_is_in_the_next_read",
    ),
    Sabotage(
        "a COMMIT whose outcome is unknown closes its lease",
        "freshness/connection.py",
        "self.in_doubt = lease",
        "journal.close(lease)",
        "test_commit.py::test_a_commit_whose_outcome_is_unknown_leaves_its_lease_open",
    ),
    Sabotage(
        "tags from before a savepoint are lost",
        "freshness/connection.py",
        "return any(scope.tags for scope in self.scopes)",
        "return bool(self.scopes[-1].tags)",
        "test_commit.py::test_a_write_before_an_empty_savepoint_invalidates_its_page",
    ),
    Sabotage(
        "a transaction without atomic() gets no lease",
        "freshness/connection.py",
        "return self.in_atomic_block or (self.connection is not None and not self.autocommit)",
        "return self.in_atomic_block",
        "test_commit.py::test_a_write_in_a_transaction_managed_by_hand_is_in_the_next_read",
    ),
    Sabotage(
        "a transaction that raw SQL began gets no lease",
        "freshness/connection.py",
        "return self.managed or self.begun",
        "return self.managed",
        "test_races.py::test_a_read_inside_a_transaction_that_raw_sql_began_is_not_stored",
    ),
    Sabotage(
        "COMMIT as raw SQL is allowed",
        "freshness/connection.py",
        "if self.managed or self.uncommitted or not judged.alone:",
        "if False:",
        "test_statements.py::test_ending_a_transaction_with_sql_is_refused",
    ),
    Sabotage(
        "COMMIT as raw SQL is refused although no tracked table was written",
        "freshness/connection.py",
        "if self.managed or self.uncommitted or not judged.alone:",
        "if True:",
        "test_statements.py::test_ending_a_transaction_that_wrote_no_tracked_table_is_allowed",
    ),
    Sabotage(
        "raw SQL in autocommit commits without a lease",
        "freshness/connection.py",
        "with transaction.atomic(using=self.alias):",
        "if True:",
        "test_writes.py::test_every_way_to_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "an unfinished SELECT is read to its end before the write",
        "freshness/sqlite3/base.py",
        "return self.in_transaction or (self.connection is not None and self._has_unfinished())",
        "return self.in_transaction",
        "test_races.py::test_a_read_beside_an_unfinished_select_is_not_stored",
    ),
    Sabotage(
        "two SELECTs of one response see two states of the database",
        "freshness/sqlite3/base.py",
        "with transaction.atomic(using=self.alias, durable=True):",
        "if True:",
        "test_races.py::test_a_detail_never_combines_two_states_of_the_database",
    ),
    Sabotage(
        "a snapshot takes the write lock",
        "freshness/sqlite3/base.py",
        'self.transaction_mode: Any = "DEFERRED"',
        "pass",
        "test_races.py::test_a_detail_between_lease_and_commit_is_not_stored",
    ),
    Sabotage(
        "a snapshot leaves its isolation level on the connection",
        "freshness/sqlite3/base.py",
        "self.transaction_mode = mode",
        "pass",
        "test_races.py::test_a_transaction_after_a_detail_still_takes_the_write_lock_when_it_begins",
    ),
)
