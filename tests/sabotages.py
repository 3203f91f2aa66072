"""What each spec is there to notice: one-line sabotages of `housing`, and the spec that goes red for each.

    python -m tests.sabotages            all of them; what stays green, or fits no longer, is said, and the exit code is 1
    python -m tests.sabotages WORDS      those whose description or file has these words in it

Each runs in a copy of the tree, in a temporary folder; the tree itself is never touched. `make mutants` runs them all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent

COPIED = ("housing", "tests", "conftest.py", "pytest.ini", "manage.py", "images.env")
"""What the specs named below need of the tree."""

PATIENCE = 120
"""Seconds that one spec may take before it counts as hung."""


@dataclass(frozen=True)
class Sabotage:
    """One line of `file` (in `housing/`) made wrong, and the spec (in `tests/`) that notices."""

    what: str
    file: str
    old: str
    new: str
    spec: str


def chaptered(spec: str) -> str:
    """The spec of the chapter that most of these are in, unless another is named."""
    return spec if "::" in spec else f"test_invalidation.py::{spec}"


def judged(text: str) -> str:
    """The spec that judges this text."""
    return f"test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise[{text}]"


# The journal: its defences by name, and what else stands in the comparison.

JOURNAL = (
    Sabotage(
        "read_at: the instant is that of the store, not of the miss",
        "freshness/journal.lua",
        "local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "read_at = text(tick('1').last) local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "test_races.py::test_a_write_between_select_and_store",
    ),
    Sabotage(
        "lease: none is opened before COMMIT",
        "freshness/connection.py",
        "lease = journal.lease(tags)",
        'lease = Lease("none", tuple(tags))',
        "test_races.py::test_a_read_between_commit_and_close",
    ),
    Sabotage(
        "lease: it ends at once",
        "freshness/journal.lua",
        "text(LEASES + j.last + LEASE), lease",
        "text(LEASES + j.last), lease",
        "test_races.py::test_a_read_between_commit_and_close",
    ),
    Sabotage(
        "lease: it is opened after COMMIT",
        "freshness/connection.py",
        "lease = journal.lease(tags)",
        "super()._commit(); lease = journal.lease(tags)",
        "test_races.py::test_a_read_between_commit_and_close",
    ),
    Sabotage(
        "lease: an open one is no reason for doubt",
        "freshness/journal.lua",
        "if mine[tag] then return 'leased' end",
        "",
        "test_races.py::test_killed_between_commit_and_close",
    ),
    Sabotage(
        "lease: any is a reason for doubt",
        "freshness/journal.lua",
        "if mine[tag] then return 'leased' end",
        "do return 'leased' end",
        "test_races.py::test_pages_that_a_write_does_not_touch_stay_warm_while_it_commits",
    ),
    Sabotage(
        "lease: one that ran out leaves no record",
        "freshness/journal.lua",
        "call('ZADD', journal, 'GT', all_at(text(expiry), split(tags)))",
        "",
        "test_races.py::test_an_entry_read_under_a_lease_that_ran_out_is_not_trusted_afterwards",
    ),
    Sabotage(
        "lease: one that ran out stays for ever",
        "freshness/journal.lua",
        "call('ZREM', journal, over[i])",
        "",
        "test_races.py::test_a_journal_remembers_no_more_than_was_written_within_a_ttl",
    ),
    Sabotage(
        "closed record: a close leaves none",
        "freshness/journal.lua",
        "record(j, all_at(text(j.last), split(tags)))",
        "record(j)",
        "test_races.py::test_a_write_between_select_and_store",
    ),
    Sabotage(
        "closed record: those of tags that nobody asked for count",
        "freshness/journal.lua",
        "if closed and tonumber(closed) >= read_at then",
        "if #written > 0 then",
        "test_races.py::test_a_write_to_something_else_between_select_and_store",
    ),
    Sabotage(
        "closed record: it is dropped at once",
        "freshness/journal.lua",
        "if j.last - TTL > j.low + 500000 then",
        "call('ZREMRANGEBYSCORE', journal, 1, text(j.last)) if false then",
        "test_races.py::test_a_write_between_select_and_store",
    ),
    Sabotage(
        "own lease only: a close ends every lease",
        "freshness/journal.lua",
        "call('ZREM', journal, lease .. '|' .. tags)\n  record",
        "call('ZREMRANGEBYSCORE', journal, text(LEASES), '+inf')\n  record",
        "test_races.py::test_the_close_of_one_writer_ends_no_lease_of_another",
    ),
    Sabotage(
        "own lease only: all leases have one name",
        "freshness/journal.py",
        "Lease(os.urandom(8).hex(), ",
        'Lease("lease", ',
        "test_races.py::test_of_two_leases_on_the_same_tags_a_close_ends_one",
    ),
    Sabotage(
        "epoch: it is not compared",
        "freshness/journal.lua",
        "if epoch ~= j.epoch or read_at <= j.low",
        "if read_at <= j.low",
        "test_races.py::test_an_entry_of_a_lost_journal_is_disowned_even_if_the_clock_stepped_back",
    ),
    Sabotage(
        "epoch: it is always the same",
        "freshness/journal.py",
        "str(int.from_bytes(os.urandom(6)) + 1)",
        '"1"',
        "test_races.py::test_an_entry_of_a_lost_journal_is_disowned_even_if_the_clock_stepped_back",
    ),
    Sabotage(
        "quarantine: a new journal begins without a lease on everything",
        "freshness/journal.lua",
        "if not quiet then",
        "if false then",
        "test_races.py::test_the_journal_is_lost_while_a_write_commits",
    ),
    Sabotage(
        "quarantine: the lease on everything is on nothing",
        "freshness/journal.lua",
        "if tag == '*' then return 'recovering' end",
        "",
        "test_races.py::test_the_journal_is_lost_while_a_write_commits",
    ),
    Sabotage(
        "quarantine: once over, it leaves no low-water mark",
        "freshness/journal.lua",
        "call('ZADD', journal, text(-expiry), 'low')",
        "",
        "test_races.py::test_a_read_at_the_very_instant_at_which_a_lease_runs_out_is_not_trusted",
    ),
    Sabotage(
        "low water: what was read before it is trusted",
        "freshness/journal.lua",
        "or read_at <= j.low then",
        "then",
        "test_races.py::test_records_are_dropped_and_what_was_read_before_them_with_them",
    ),
    Sabotage(
        "low water: it does not rise when records are dropped",
        "freshness/journal.lua",
        "call('ZADD', journal, text(TTL - j.last), 'low')",
        "",
        "test_races.py::test_records_are_dropped_and_what_was_read_before_them_with_them",
    ),
    Sabotage(
        "low water: nothing is ever dropped below it",
        "freshness/journal.lua",
        "call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL))",
        "",
        "test_races.py::test_records_are_dropped_and_what_was_read_before_them_with_them",
    ),
    Sabotage(
        "run id: the journal does not carry it",
        "freshness/journal.lua",
        "'run:@RUN@'",
        "'run:'",
        "test_races.py::test_a_server_that_restarts_with_all_its_data_begins_cold",
    ),
    Sabotage(
        "run id: it is learnt once, and no restart is noticed",
        "freshness/journal.py",
        '.replace("@RUN@", run)',
        '.replace("@RUN@", "a")',
        "test_races.py::test_a_server_that_restarts_with_all_its_data_begins_cold",
    ),
    Sabotage(
        "run id: the server that loads is not the one that was asked",
        "freshness/journal.py",
        'connection.send_command("SCRIPT", "LOAD", script(run))',
        'connection = client.connection_pool.get_connection(); connection.send_command("SCRIPT", "LOAD", script(run))',
        "test_races.py::test_a_server_that_restarts_while_it_is_asked_which_run_it_is",
    ),
    Sabotage(
        "monotonic instants: the clock as it is",
        "freshness/journal.lua",
        "math.max(now, j.last + 1)",
        "now",
        "test_races.py::test_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "monotonic instants: two may be the same",
        "freshness/journal.lua",
        "math.max(now, j.last + 1)",
        "math.max(now, j.last)",
        "test_races.py::test_two_events_of_one_microsecond_are_told_apart",
    ),
    Sabotage(
        "monotonic instants: the last one is not kept",
        "freshness/journal.lua",
        "call('ZADD', journal, text(-j.last), 'last', ...)",
        "if ... then call('ZADD', journal, ...) end",
        "test_races.py::test_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "monotonic instants: a clock far behind them is followed for ever",
        "freshness/journal.lua",
        "if not j or j.last > now + LEASE then",
        "if not j then",
        "test_races.py::test_the_clock_steps_back_by_more_than_a_lease",
    ),
    Sabotage(
        "monotonic instants: a clock a little behind them ends the journal",
        "freshness/journal.lua",
        "if not j or j.last > now + LEASE then",
        "if not j or j.last > now then",
        "test_races.py::test_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "ties: a lease at that very instant is over",
        "freshness/journal.lua",
        "journal, text(LEASES + read_at), '+inf')",
        "journal, '(' .. text(LEASES + read_at), '+inf')",
        "test_races.py::test_a_read_at_the_very_instant_at_which_a_lease_runs_out_is_not_trusted",
    ),
    Sabotage(
        "ties: a close at that very instant came before",
        "freshness/journal.lua",
        "if closed and tonumber(closed) >= read_at then",
        "if closed and tonumber(closed) > read_at then",
        "test_races.py::test_a_read_at_the_very_instant_at_which_a_lease_runs_out_is_not_trusted[a lease]",
    ),
    Sabotage(
        "ties: a low-water mark at that very instant is below",
        "freshness/journal.lua",
        "or read_at <= j.low then",
        "or read_at < j.low then",
        "test_races.py::test_a_read_at_the_very_instant_at_which_a_lease_runs_out_is_not_trusted[a recovering lease]",
    ),
    Sabotage(
        "instants pass through tostring",
        "freshness/journal.lua",
        "string.format('%.0f', instant)",
        "tostring(instant)",
        "test_races.py::test_two_events_of_one_microsecond_are_told_apart",
    ),
)

# What each write makes stale: every row of the table in signals.py, and which writes are asked.

TAGS = (
    *(
        Sabotage(
            f"a property's {column} selects no page",
            "signals.py",
            f'"{column}", ',
            "",
            f"test_invalidation.py::test_a_row_enters_and_leaves_a_filtered_page[{case}]",
        )
        for column, case in {
            "title": "title-A lighthouse-search=lighthouse",
            "description": "description-By the lighthouse.-search=lighthouse",
            "property_type": "property_type-land-property_type=land",
            "status": "status-sold-status=sold",
            "price": "price-9-max_price=9",
            "bedrooms": "bedrooms-9-min_bedrooms=9",
        }.items()
    ),
    Sabotage(
        "a property's location selects no page",
        "signals.py",
        '"location_id", ',
        "",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Property.location to Property deleted]",
    ),
    Sabotage(
        "a property's agent selects no page",
        "signals.py",
        ', "agent_id")',
        ")",
        "test_invalidation.py::test_a_property_moves_to_another_agent",
    ),
    Sabotage(
        "a property comes and goes, and no list knows",
        "signals.py",
        ", listed=True)",
        ")",
        "test_invalidation.py::test_a_created_property_is_first_in_the_very_next_read",
    ),
    Sabotage(
        "a property's row is not told",
        "signals.py",
        "return set() if key is None else",
        "return set() if model is Property else",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Property.title to Property.area]",
    ),
    Sabotage(
        "an agent is not listened to",
        "signals.py",
        'Agent: Stale("id", ("office_id",)),',
        "",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Agent.name to Agent deleted]",
    ),
    Sabotage(
        "an agent's office selects no page",
        "signals.py",
        'Stale("id", ("office_id",))',
        'Stale("id")',
        "test_invalidation.py::test_an_agent_moves_to_another_office",
    ),
    Sabotage(
        "an office is not listened to",
        "signals.py",
        'Office: Stale("id"),',
        "",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Office.name to Office deleted]",
    ),
    Sabotage(
        "a location is not listened to",
        "signals.py",
        'Location: Stale("id", ("city",)),',
        "",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Location.city to Location deleted]",
    ),
    Sabotage(
        "a location's city selects no page",
        "signals.py",
        'Stale("id", ("city",))',
        'Stale("id")',
        "test_invalidation.py::test_a_location_moves_to_another_city",
    ),
    Sabotage(
        "an image is not listened to",
        "signals.py",
        'PropertyImage: Stale("property_id"),',
        "",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
    ),
    Sabotage(
        "an image is shown under its own id",
        "signals.py",
        'Stale("property_id")',
        'Stale("id")',
        "test_invalidation.py::test_an_image_leaves_its_old_owner",
    ),
    Sabotage(
        "an image's old owner is not told",
        "signals.py",
        "return tags | _stored_row_tags(instance, connection) |",
        "return tags |",
        "test_invalidation.py::test_an_image_leaves_its_old_owner",
    ),
    Sabotage(
        "a save is taken to write what differs from a row that nobody locked",
        "signals.py",
        "return held if connection.holds(frame) and",
        "return held if",
        "test_invalidation.py::test_a_lock_ends_with_its_transaction",
    ),
    Sabotage(
        "a proxy is not listened to",
        "signals.py",
        "if model._meta.concrete_model in TABLE:",
        "if model in TABLE:",
        "test_invalidation.py::test_a_save_through_a_proxy_names_its_row_and_no_other",
    ),
    *(
        Sabotage(f"{signal} is not heard", "signals.py", "(pre_save, post_save, pre_delete):", f"({others}):", chaptered(spec))
        for signal, others, spec in (
            (
                "pre_save",
                "post_save, pre_delete",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
            ),
            ("post_save", "pre_save, pre_delete", "test_a_receiver_may_change_what_is_saved"),
            (
                "pre_delete",
                "pre_save, post_save",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
            ),
        )
    ),
    *(
        Sabotage(f"a page {way} does not depend on it", "filters.py", old, new, chaptered(spec))
        for way, old, new, spec in (
            (
                "by city, by where a property stands,",
                'column_tag(Property, "location_id"), ',
                "",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Property.location to Property deleted]",
            ),
            ("by city, by where that is,", ', column_tag(Location, "city")', ",", "test_a_location_moves_to_another_city"),
            ("by status", '"status": (column_tag(Property, "status"),),', "", "test_a_row_enters_and_leaves_a_filtered_page[status-sold-status=sold]"),
            (
                "by type",
                '"property_type": (column_tag(Property, "property_type"),),',
                "",
                "test_a_row_enters_and_leaves_a_filtered_page[property_type-land-property_type=land]",
            ),
            ("by agent", '"agent": (column_tag(Property, "agent_id"),),', "", "test_a_property_moves_to_another_agent"),
            ("by office, by who sells,", '"office": (column_tag(Property, "agent_id"), ', '"office": (', "test_a_property_moves_to_another_agent"),
            ("by office, by who works there,", ', column_tag(Agent, "office_id"))', ",)", "test_an_agent_moves_to_another_office"),
            (
                "by min_price",
                '"min_price": (column_tag(Property, "price"),),',
                "",
                "test_a_row_enters_and_leaves_a_filtered_page[price-900000-min_price=900000]",
            ),
            ("by max_price", '"max_price": (column_tag(Property, "price"),),', "", "test_a_row_enters_and_leaves_a_filtered_page[price-9-max_price=9]"),
            (
                "by bedrooms",
                '"min_bedrooms": (column_tag(Property, "bedrooms"),),',
                "",
                "test_a_row_enters_and_leaves_a_filtered_page[bedrooms-9-min_bedrooms=9]",
            ),
            (
                "by title",
                '(column_tag(Property, "title"), column_tag(Property, "description"))',
                '(column_tag(Property, "description"),)',
                "test_a_row_enters_and_leaves_a_filtered_page[title-A lighthouse-search=lighthouse]",
            ),
            (
                "by description",
                '(column_tag(Property, "title"), column_tag(Property, "description"))',
                '(column_tag(Property, "title"),)',
                "test_a_row_enters_and_leaves_a_filtered_page[description-By the lighthouse.-search=lighthouse]",
            ),
            ("in the order of price", '    "price": (column_tag(Property, "price"),),', "", "test_a_price_moves_a_row_to_another_page[price-19-1]"),
            ("against the order of price", '"-price": (column_tag(Property, "price"),),', "", "test_a_price_moves_a_row_to_another_page[-price-0-999999]"),
        )
    ),
    *(
        Sabotage(f"an answer does not depend on {what}", "queries.py", old, new, chaptered(spec))
        for what, old, new, spec in (
            (
                "its properties",
                'row_tag(Property, home["id"]),',
                "",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Property.title to Property.area]",
            ),
            (
                "their locations",
                'row_tag(Location, home["location"]["id"]),',
                "",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Location.city to Location deleted]",
            ),
            (
                "their agents",
                'row_tag(Agent, agent["id"]),',
                "",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Agent.name to Agent deleted]",
            ),
            ("their offices", 'row_tag(Office, agent["office"]["id"]),', "", "test_the_new_name_of_an_office_two_joins_away_is_in_the_very_next_read"),
            (
                "its images",
                'row_tag(PropertyImage, shown["id"]), ',
                "",
                "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
            ),
            ("all images", ', f"{PropertyImage.tag}:*"', "", "test_a_write_of_images_without_a_signal_is_in_the_very_next_read"),
            (
                "all rows of a model",
                'tags = {f"{model.tag}:*" for model in MODELS}',
                "tags = set()",
                "test_invalidation.py::test_every_way_of_writing_is_in_the_very_next_read[in autocommit]",
            ),
            ("the list", "return {LIST} | tags_of_rows(shown)", "return tags_of_rows(shown)", "test_a_created_property_is_first_in_the_very_next_read"),
            ("what it was selected by", " | set(selected_by)", "", "test_a_location_moves_to_another_city"),
        )
    ),
)

# The commit: what mutmut leaves alone, for it is decorated, or no function at all.

COMMIT = (
    Sabotage(
        "a commit is not closed",
        "freshness/connection.py",
        "journal.close(lease)",
        "pass",
        "test_invalidation.py::test_a_saved_price_is_in_the_very_next_read",
    ),
    Sabotage(
        "a commit of unknown outcome is closed",
        "freshness/connection.py",
        "self.in_doubt = lease",
        "journal.close(lease)",
        "test_invalidation.py::test_a_commit_with_unknown_outcome_is_not_closed",
    ),
    Sabotage(
        "writes under an earlier savepoint are forgotten",
        "freshness/connection.py",
        "return any(frame.tags for frame in self.frames)",
        "return bool(self.frames[-1].tags)",
        "test_invalidation.py::test_what_came_before_a_savepoint_left_empty_counts_as_written",
    ),
    Sabotage(
        "a transaction that is managed by hand is none",
        "freshness/connection.py",
        "return self.in_atomic_block or (self.connection is not None and not self.autocommit)",
        "return self.in_atomic_block",
        "test_invalidation.py::test_a_transaction_managed_by_hand_takes_the_same_way",
    ),
    Sabotage(
        "a transaction that SQL began is none",
        "freshness/connection.py",
        "return self.managed or self.begun",
        "return self.managed",
        "test_races.py::test_a_read_inside_a_transaction_that_only_sql_began",
    ),
    Sabotage(
        "what happens during a save is taken for the save, for ever",
        "freshness/connection.py",
        "self.covered.pop()",
        "pass",
        "test_invalidation.py::test_an_update_after_a_save_is_not_taken_for_the_save",
    ),
    Sabotage(
        "COMMIT as SQL is let through",
        "freshness/connection.py",
        "if self.managed or self.uncommitted or not judged.alone:",
        "if False:",
        "test_statements.py::test_ending_a_transaction_with_sql_is_refused",
    ),
    Sabotage(
        "COMMIT as SQL is refused though nothing of ours was written",
        "freshness/connection.py",
        "if self.managed or self.uncommitted or not judged.alone:",
        "if True:",
        "test_statements.py::test_ending_a_transaction_that_wrote_no_tracked_table_is_allowed",
    ),
    Sabotage(
        "SQL in autocommit commits by itself",
        "freshness/connection.py",
        "with transaction.atomic(using=self.alias):",
        "if True:",
        "test_invalidation.py::test_every_way_of_writing_is_in_the_very_next_read[in autocommit]",
    ),
    Sabotage(
        "an unfinished SELECT is finished",
        "freshness/sqlite3/base.py",
        "return self.in_transaction or (self.connection is not None and self._has_unfinished())",
        "return self.in_transaction",
        "test_races.py::test_a_read_while_an_earlier_select_is_not_read_to_its_end",
    ),
    Sabotage(
        "two SELECTs see two states",
        "freshness/sqlite3/base.py",
        "with transaction.atomic(using=self.alias, durable=True):",
        "if True:",
        "test_races.py::test_a_title_and_images_of_two_states_are_never_one_answer",
    ),
    Sabotage(
        "a snapshot takes the lock of a writer",
        "freshness/sqlite3/base.py",
        'self.transaction_mode: Any = "DEFERRED"',
        "pass",
        "test_races.py::test_a_detail_between_lease_and_commit",
    ),
    Sabotage(
        "a snapshot leaves its mode behind",
        "freshness/sqlite3/base.py",
        "self.transaction_mode = mode",
        "pass",
        "test_races.py::test_a_writer_after_a_detail_takes_its_lock_at_once",
    ),
)

# Which statements are writes, and the ways to send one.

SQL = (
    Sabotage(
        "an UPDATE is no write",
        "freshness/statements.py",
        "SELECT | VALUES |",
        "SELECT | UPDATE | VALUES |",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "EXPLAIN ANALYZE runs nothing",
        "freshness/statements.py",
        'return _tables_of_one(piece[explained.end() :], sql) if explained["analyze"] or RUNS.search(explained["options"]) else NOTHING',
        "return NOTHING",
        judged("explain analyze update HOUSING_AGENT set name = 'x'"),
    ),
    Sabotage(
        "EXPLAIN ANALYZE is judged by mention",
        "freshness/statements.py",
        "return _tables_of_one(piece[explained.end() :], sql) if",
        "return _mentioned(sql) if",
        judged("EXPLAIN ANALYZE UPDATE somebodys_view SET price = 1 WHERE id IN (SELECT id FROM housing_agent)"),
    ),
    Sabotage(
        "EXPLAIN with a comment is not understood, and so runs nothing",
        "freshness/statements.py",
        "    if not explained:\n        return frozenset(tracking.tables())",
        "    if not explained:\n        return NOTHING",
        "test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise",
    ),
    Sabotage(
        "EXPLAIN (ANALYZE false) runs",
        "freshness/statements.py",
        r"\bANALY[SZ]E\b(?!\s+(?:false|off|0)\b)",
        r"\bANALY[SZ]E\b",
        judged("EXPLAIN (ANALYZE false) UPDATE housing_agent SET name = 'x'"),
    ),
    Sabotage(
        "a view is taken for nothing",
        "freshness/statements.py",
        "if HIDDEN.search(rest) or not all(names_of(target) in _known() for target in targets):\n        return everything",
        "if HIDDEN.search(rest) or not all(names_of(target) in _known() for target in targets):\n        return NOTHING",
        judged("UPDATE somebodys_view SET price = 1"),
    ),
    Sabotage(
        "a target that no model has is judged by mention",
        "freshness/statements.py",
        "not all(names_of(target) in _known() for target in targets):\n        return everything",
        "not all(names_of(target) in _known() for target in targets):\n        return _mentioned(sql)",
        judged("MERGE INTO somebodys_view USING housing_agent a ON true WHEN MATCHED THEN DELETE"),
    ),
    Sabotage(
        "one known target of several is enough",
        "freshness/statements.py",
        "not all(names_of(target) in _known()",
        "not any(names_of(target) in _known()",
        judged("TRUNCATE somebodys_table, housing_agent"),
    ),
    Sabotage(
        "a write inside a write is not looked for",
        "freshness/statements.py",
        "if HIDDEN.search(rest) or not all",
        "if not all",
        judged("INSERT INTO django_session WITH x AS (DELETE FROM somebodys_view RETURNING id) SELECT * FROM x"),
    ),
    Sabotage(
        "a CTE that writes is a read",
        "freshness/statements.py",
        r"WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b)",
        r"WITH\b",
        judged("WITH x AS (DELETE FROM somebodys_view RETURNING id) SELECT * FROM x, housing_agent"),
    ),
    Sabotage(
        "a CTE that reads is a write",
        "freshness/statements.py",
        " or READS_ONLY.match(sql[LEAD.match(sql).end() :])",
        "",
        judged("WITH x AS (SELECT id FROM housing_agent) SELECT * FROM x"),
    ),
    Sabotage(
        "CALL and whatever else is unknown is judged by mention",
        "freshness/statements.py",
        "    else:\n        return everything\n    if HIDDEN",
        "    else:\n        return _mentioned(sql)\n    if HIDDEN",
        judged("CALL nightly('housing_agent')"),
    ),
    Sabotage(
        "several statements are judged by mention",
        "freshness/statements.py",
        "return NOTHING if all(map(_is_harmless, pieces)) else frozenset(tracking.tables())",
        "return NOTHING if all(map(_is_harmless, pieces)) else _mentioned(sql)",
        judged("SELECT 1; CALL nightly('housing_agent')"),
    ),
    Sabotage(
        "one harmless statement of several is enough",
        "freshness/statements.py",
        "if all(map(_is_harmless, pieces))",
        "if any(map(_is_harmless, pieces))",
        judged("SELECT 1; UPDATE housing_agent SET name = 'x'"),
    ),
    Sabotage(
        "TRUNCATE … CASCADE empties what it says",
        "freshness/statements.py",
        r"(?:RESTRICT)? \Z",
        r"(?:RESTRICT|CASCADE)? \Z",
        judged("TRUNCATE housing_office CASCADE"),
    ),
    Sabotage(
        "DROP … CASCADE drops what it says",
        "freshness/statements.py",
        "return everything if CASCADE.search(piece) or HIDDEN.search(piece) else _mentioned(sql)",
        "return _mentioned(sql)",
        judged("DROP TABLE mine CASCADE"),
    ),
    Sabotage(
        "the CASCADE of a foreign key is one of DROP",
        "freshness/statements.py",
        r"(?<!\bDELETE\s)(?<!\bUPDATE\s)",
        "",
        judged("CREATE TABLE mine (office_id integer REFERENCES elsewhere (id) ON DELETE CASCADE)"),
    ),
    Sabotage(
        "DROP SCHEMA drops what it says",
        "freshness/statements.py",
        r"(?:ALTER|DROP)\s+(?:TABLE|",
        r"(?:ALTER|DROP)\s+(?:SCHEMA|TABLE|",
        judged("DROP SCHEMA public"),
    ),
    Sabotage(
        "an enum's labels are nobody's rows",
        "freshness/statements.py",
        r"(?:ALTER|DROP)\s+(?:TABLE|",
        r"(?:ALTER|DROP)\s+(?:TYPE|TABLE|",
        judged("ALTER TYPE status RENAME VALUE 'sold' TO 'gone'"),
    ),
    Sabotage(
        "SELECT … INTO makes no table",
        "freshness/statements.py",
        "(HARMLESS.match(piece) and not MAKES_A_TABLE.match(piece))",
        "HARMLESS.match(piece)",
        judged("SELECT * INTO housing_agent FROM elsewhere"),
    ),
    Sabotage(
        "COPY … TO is a write",
        "freshness/statements.py",
        " or EXPORT.match(piece))",
        ")",
        judged("COPY housing_agent TO STDOUT"),
    ),
    Sabotage(
        "COPY … TO PROGRAM is a read",
        "freshness/statements.py",
        r" (?!.*\bPROGRAM\b)",
        "",
        judged("COPY housing_agent TO PROGRAM 'nightly'"),
    ),
    Sabotage(
        "COPY … FROM is not judged by its target",
        "freshness/statements.py",
        " or IMPORT.match(piece)",
        "",
        judged("COPY housing_office (name, city) FROM STDIN"),
    ),
    Sabotage(
        "other tables in a plain statement are not looked for",
        "freshness/statements.py",
        "everything & written.union(*cascaded) | _mentioned(sql)",
        "everything & written.union(*cascaded)",
        judged("UPDATE housing_office SET city = a.name FROM housing_agent a"),
    ),
    Sabotage(
        "a schema is no part of a name",
        "freshness/statements.py",
        r"{IDENTIFIER} (?: \s*+ \. \s*+ {IDENTIFIER} )*+ (?! \s*+ \. )",
        "{IDENTIFIER}",
        judged("UPDATE django_session . somebodys_view SET price = 1"),
    ),
    Sabotage(
        "what follows the point of a name is no part of it",
        "freshness/statements.py",
        r" (?! \s*+ \. )",
        "",
        judged("UPDATE django_session . [somebodys view] SET price = 1"),
    ),
    Sabotage(
        "a name without quotes keeps its capitals",
        "freshness/statements.py",
        "plain.lower() for quoted",
        "plain for quoted",
        judged("explain analyze update HOUSING_AGENT set name = 'x'"),
    ),
    Sabotage(
        "capitals in quotes do not matter",
        "freshness/statements.py",
        "quoted.replace('\"\"', '\"') if quoted",
        "quoted.replace('\"\"', '\"').lower() if quoted",
        "test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise",
    ),
    Sabotage(
        "what the database cascades to is not written",
        "freshness/statements.py",
        "[tracking.cascades()[table] for table in written if deletes]",
        "[]",
        "test_statements.py::test_a_deletion_writes_the_tables_to_which_the_database_itself_cascades",
    ),
    Sabotage(
        "an INSERT cascades",
        "freshness/statements.py",
        "for table in written if deletes]",
        "for table in written]",
        "test_statements.py::test_a_deletion_writes_the_tables_to_which_the_database_itself_cascades",
    ),
    Sabotage(
        "literals are read as statements",
        "freshness/statements.py",
        "    blanked = TOKEN.sub(blank, sql)",
        "    blanked = sql",
        judged("SELECT 'a; DELETE FROM housing_agent'"),
    ),
    Sabotage(
        "a backslash in a literal is a letter",
        "freshness/statements.py",
        'if "\\\\" in sql or BRACKETED',
        "if BRACKETED",
        judged(r"SELECT E'\\'', E'; SELECT '; DELETE FROM somebodys_view; --'"),
    ),
    Sabotage(
        "brackets quote nothing",
        "freshness/statements.py",
        'if "\\\\" in sql or BRACKETED.search(sql):',
        'if "\\\\" in sql:',
        judged("SELECT [it's]; DELETE FROM somebodys_view; --'"),
    ),
    Sabotage(
        "a comment in a comment ends where SQLite says",
        "freshness/statements.py",
        "return sql if nested or UNSURE",
        "return sql if UNSURE",
        judged("/* /* */ DELETE FROM housing_agent; -- */ */ SELECT 1"),
    ),
    Sabotage(
        "a lone CR ends no comment",
        "freshness/statements.py",
        r"--[^\n\r]*(?:\r?\n|\Z)",
        r"--[^\n]*(?:\n|\Z)",
        judged(r"-- x\rDELETE FROM housing_agent\nSELECT 1"),
    ),
    Sabotage(
        "what comes after COMMIT is not looked at",
        "freshness/statements.py",
        "alone = len(pieces) == 1 and not",
        "alone = not",
        "test_statements.py::test_ending_a_transaction_among_other_statements_is_refused_everywhere[COMMIT; DELETE FROM housing_property]",
    ),
    Sabotage(
        "COMMIT PREPARED is let through",
        "freshness/statements.py",
        "len(pieces) == 1 and not COMMITS_ANOTHER.match(pieces[0])",
        "len(pieces) == 1",
        "test_statements.py::test_ending_a_transaction_among_other_statements_is_refused_everywhere[COMMIT PREPARED 'x']",
    ),
    Sabotage(
        "a COMMIT after another statement is not looked for",
        "freshness/statements.py",
        "for at, piece in enumerate(pieces) if",
        "for at, piece in enumerate(pieces[:1]) if",
        "test_statements.py::test_ending_a_transaction_with_sql_is_refused[SELECT 1; COMMIT]",
    ),
    Sabotage(
        "the END of a body ends a transaction",
        "freshness/statements.py",
        " and not (at and _is_end_of_body(found[1], pieces[0]))",
        "",
        "test_statements.py::test_the_end_of_a_body_or_of_a_literal_ends_no_transaction",
    ),
    Sabotage(
        "ROLLBACK TO ends a transaction",
        "freshness/statements.py",
        r"ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b) |",
        "ROLLBACK |",
        "test_statements.py::test_a_savepoint_of_sql_is_allowed",
    ),
    Sabotage(
        "what was judged is judged for ever",
        "freshness/statements.py",
        "_remembered = tracking.until_the_models_change(lru_cache(maxsize=1024)(_judge))",
        "_remembered = lru_cache(maxsize=1024)(_judge)",
        "test_statements.py::test_a_text_is_judged_again_when_other_models_are_tracked",
    ),
    Sabotage(
        "long texts are kept",
        "freshness/statements.py",
        "_remembered(sql) if len(sql) < LONG else _judge(sql)",
        "_remembered(sql)",
        "test_statements.py::test_a_text_is_judged_once_unless_it_is_long",
    ),
    Sabotage(
        "the RELEASE of a savepoint outside a transaction commits",
        "freshness/sqlite3/base.py",
        "release_may_commit = True",
        "release_may_commit = False",
        "test_statements.py::test_the_release_of_a_savepoint_that_holds_a_write_is_refused_outside_of_atomic",
    ),
    Sabotage(
        "bytes have no text",
        "freshness/statements.py",
        'return sql.decode(errors="replace")',
        "return str(sql)",
        "test_sql.py::test_the_text_of_a_statement_is_what_psycopg_sends[bytes]",
    ),
    Sabotage(
        "a statement without a text is let through",
        "freshness/statements.py",
        "if (text := connection.text_of(sql)) is None:",
        "if (text := connection.text_of(sql)) is Ellipsis:",
        "test_sql.py::test_a_statement_without_a_text_is_refused",
    ),
    Sabotage(
        "the text of psycopg's objects is their repr",
        "freshness/postgresql/base.py",
        "composed.as_string(sql, self.connection) if isinstance(sql, STATEMENTS)",
        "str(sql) if isinstance(sql, STATEMENTS)",
        "test_sql.py::test_the_text_of_a_statement_is_what_psycopg_sends[Composed]",
    ),
    Sabotage(
        "copy is not judged",
        "freshness/postgresql/base.py",
        "with self.db.statement(text_of(statement, self.db)), self.db.wrap",
        "with self.db.wrap",
        "test_sql.py::test_every_method_that_sends_sql_has_its_text_judged[PostgreSQL]",
    ),
    Sabotage(
        "stream is not judged",
        "freshness/postgresql/base.py",
        "with self.db.statement(text, params), self.db.wrap",
        "with self.db.wrap",
        "test_sql.py::test_every_method_that_sends_sql_has_its_text_judged[PostgreSQL]",
    ),
    Sabotage(
        "an unknown method of the driver is passed through",
        "freshness/cursor.py",
        "if name not in self.sends_no_sql:",
        "if False:",
        "test_sql.py::test_a_method_that_a_driver_adds_is_refused_until_somebody_has_looked_at_it",
    ),
    Sabotage(
        "a method that is refused is there for hasattr()",
        "freshness/cursor.py",
        "class MethodRefused(NotSupportedError, AttributeError):",
        "class MethodRefused(NotSupportedError):",
        "test_sql.py::test_a_method_that_a_driver_adds_is_refused_until_somebody_has_looked_at_it",
    ),
    Sabotage(
        "a method that sends SQL is allowed by name",
        "freshness/cursor.py",
        '"rowcount", "setinputsizes"',
        '"rowcount", "executescript", "setinputsizes"',
        "test_sql.py::test_no_method_that_is_allowed_takes_a_statement",
    ),
    Sabotage(
        "a cursor hands out the driver's connection",
        "freshness/cursor.py",
        '"rowcount", "setinputsizes"',
        '"rowcount", "connection", "setinputsizes"',
        "test_sql.py::test_a_cursor_does_not_hand_out_the_drivers_connection",
    ),
    Sabotage(
        "execute() returns the driver's cursor",
        "freshness/cursor.py",
        "                found = super().execute(sql, params)\n        return self if found is self.cursor else found",
        "                found = super().execute(sql, params)\n        return found",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "executemany() returns the driver's cursor",
        "freshness/cursor.py",
        "            found = super().executemany(sql, param_list)\n        return self if found is self.cursor else found",
        "            found = super().executemany(sql, param_list)\n        return found",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "an execute wrapper replaces what was judged",
        "freshness/cursor.py",
        "    if sql is judged:",
        "    if True:",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "executemany is not judged",
        "freshness/cursor.py",
        "with self.db.statement(text_of(sql, self.db)), self.db.execute_wrapper",
        "with self.db.execute_wrapper",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "a procedure is not judged",
        "freshness/cursor.py",
        'with self.db.statement("CALL procedure()"):',
        "if True:",
        "test_sql.py::test_a_procedure_may_write_anything",
    ),
    Sabotage(
        "a copy of a connection opens the transaction of another",
        "freshness/connection.py",
        "        if held is not self:\n            connections[self.alias] = self\n        try:",
        "        try:",
        "test_sql.py::test_a_write_through_a_copy_of_the_connection_is_in_the_next_read",
    ),
    Sabotage(
        "a copy of a connection takes its place",
        "freshness/connection.py",
        "                connections[self.alias] = held",
        "                pass",
        "test_sql.py::test_a_write_through_a_copy_of_the_connection_is_in_the_next_read",
    ),
    Sabotage(
        "a script is not looked at",
        "freshness/sqlite3/base.py",
        " or may_write(script):",
        ":",
        "test_sql.py::test_a_script_that_may_write_a_tracked_table_is_refused",
    ),
    Sabotage(
        "a script inside a transaction is let through",
        "freshness/sqlite3/base.py",
        "if self.db.managed or self.db.uncommitted or may_write(script):",
        "if may_write(script):",
        "test_sql.py::test_a_script_inside_a_transaction_is_refused_whatever_it_says",
    ),
    Sabotage(
        "the tables of many-to-many fields are taken for views",
        "freshness/tracking.py",
        "for model in apps.get_models(include_auto_created=True)} | {Migr",
        "for model in apps.get_models()} | {Migr",
        judged("DELETE FROM auth_user_groups"),
    ),
)

# The rules of a read.

READ = (
    Sabotage(
        "a hit asks Redis twice",
        "freshness/entries.py",
        "found := journal.lookup(key, etags, draw",
        "found := journal.lookup(key) and journal.lookup(key, etags, draw",
        "test_cost.py::test_a_hit_costs_one_round_trip",
    ),
    Sabotage(
        "who finds its connection dead gives up",
        "freshness/journal.py",
        "return client.execute_command(*command)",
        "raise",
        "test_hits.py::test_who_finds_its_connection_dead_asks_once_more",
    ),
    Sabotage(
        "an answer that nobody has read is left for who asks next",
        "freshness/journal.py",
        "            self.connection.disconnect()\n            raise\n",
        "            raise\n",
        "test_hits.py::test_who_is_interrupted_between_question_and_answer_does_not_take_it_for_the_next",
    ),
    Sabotage(
        "a fork goes on talking where its parent does",
        "freshness/journal.py",
        " or self.process != os.getpid()",
        "",
        "test_hits.py::test_a_fork_has_a_connection_of_its_own",
    ),
    Sabotage(
        "who turns to another pool keeps the connection of the first",
        "freshness/journal.py",
        "self.give_back()\n        self.connection",
        "self.connection",
        "test_hits.py::test_who_turns_to_another_pool_gives_the_first_its_connection_back",
    ),
    Sabotage(
        "a thread keeps its connection when it ends",
        "freshness/journal.py",
        "finalize(threading.current_thread(), pool.release, self.connection)",
        "finalize(self, pool.release, self.connection)",
        "test_hits.py::test_a_thread_that_ends_gives_its_connection_back",
    ),
    Sabotage(
        "PostgreSQL looks for a city or an office where it has no index for it",
        "filters.py",
        "    def as_postgresql(",
        "    def as_oracle(",
        "test_contract.py::test_a_city_or_an_office_is_looked_for_where_postgresql_has_its_index",
    ),
    Sabotage(
        "who serves ends when the code changes",
        "run.py",
        "CHANGED = 3",
        "CHANGED = None",
        "test_setup.py::test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_its_cache",
    ),
    Sabotage(
        "a server that does not hear is waited for",
        "run.py",
        "        server.kill()",
        "        server.terminate()",
        "test_setup.py::test_a_server_that_does_not_hear_is_ended_all_the_same",
    ),
    Sabotage(
        "equal values come in any order",
        "filters.py",
        'order_by(f"{sign}{column}", f"{sign}id")',
        'order_by(f"{sign}{column}")',
        "test_contract.py::test_a_cursor_walks_what_a_filter_left_without_loss_or_repeat",
    ),
    Sabotage(
        "the last page of what is left is taken for the first",
        "filters.py",
        "if rows else Cursor(self.ordering, backward=True)",
        "if rows else Cursor(self.ordering, backward=False)",
        "test_contract.py::test_a_cursor_beyond_the_end_leads_back_to_the_last_page",
    ),
    Sabotage(
        "a page walked back to does not lead on",
        "filters.py",
        "following = cursor.after(rows[-1], backward=False, pick=pick) if rows else None",
        "following = None",
        "test_contract.py::test_a_page_walked_back_to_is_the_page_that_was_left",
    ),
    Sabotage(
        "what is asked is told from its text alone, whatever its encoding",
        "filters.py",
        'request.META.get("QUERY_STRING", ""), request.encoding',
        'request.META.get("QUERY_STRING", ""), None',
        "test_contract.py::test_the_same_text_in_another_encoding_asks_for_something_else",
    ),
    Sabotage(
        "the quick bytes are not DRF's: a separator that JavaScript cannot read",
        "serializers.py",
        r'.replace(b"\xe2\x80\xa9", rb"\u2029")',
        "",
        "test_contract.py::test_what_javascript_once_took_for_the_end_of_a_line_is_escaped_as_drf_does",
    ),
    Sabotage(
        "the quick bytes are not DRF's: an instant as Python writes it",
        "serializers.py",
        'f"{text[:-6]}Z"',
        "text",
        "test_contract.py::test_the_cached_bytes_are_drfs_own_for_any_property",
    ),
    Sabotage(
        "a 304 carries the body",
        "freshness/journal.lua",
        "if known == e[3] or known == '*' then",
        "if false then",
        "test_hits.py::test_who_has_the_bytes_is_not_sent_them_again",
    ),
    Sabotage(
        "a lookup without a journal trusts what is there",
        "freshness/journal.lua",
        "not (j and e[1]) and 'missing' or doubt(",
        "not e[1] and 'missing' or j and doubt(",
        "test_races.py::test_the_journal_is_lost_after_a_killed_writer",
    ),
    Sabotage(
        "a miss asks which epoch it is in a call of its own",
        "freshness/entries.py",
        "verdict = journal.store(key, found, tags, etag_of(body), body, seconds)",
        "journal.lookup(key); verdict = journal.store(key, found, tags, etag_of(body), body, seconds)",
        "test_cost.py::test_a_miss_costs_two_round_trips",
    ),
    Sabotage(
        "a pickle is remembered",
        "freshness/entries.py",
        "verdict = journal.store(key, found, tags, etag_of(body), body, seconds)",
        'verdict = journal.store(key, found, tags, etag_of(body), __import__("pickle").dumps(body), seconds)',
        "test_hits.py::test_what_is_remembered_is_bytes_and_no_pickle",
    ),
    Sabotage(
        "a key carries no fingerprint",
        "freshness/keys.py",
        ":{fingerprint()}:",
        ":",
        "test_hits.py::test_a_deploy_with_another_shape_finds_nothing",
    ),
    Sabotage(
        "a read inside a transaction is remembered",
        "freshness/entries.py",
        "if connection.reads_the_past:",
        "if False:",
        "test_hits.py::test_inside_a_transaction_nothing_is_remembered",
    ),
    Sabotage(
        "ATOMIC_REQUESTS applies to the cached views",
        "views.py",
        "return transaction.non_atomic_requests(super().as_view(**initkwargs))",
        "return super().as_view(**initkwargs)",
        "test_hits.py::test_atomic_requests_leaves_the_cached_doors_out",
    ),
    Sabotage(
        "a raced read is given as it is",
        "freshness/entries.py",
        "ATTEMPTS = 3",
        "ATTEMPTS = 1",
        "test_races.py::test_a_write_between_select_and_store",
    ),
    Sabotage(
        "a raced read is read again for ever",
        "freshness/entries.py",
        "for _ in range(ATTEMPTS):",
        "while True:",
        "test_races.py::test_a_write_between_select_and_store_every_time",
    ),
    Sabotage(
        "what is not trusted is stored all the same",
        "freshness/journal.lua",
        "local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "local why",
        "test_races.py::test_a_write_between_select_and_store",
    ),
    Sabotage(
        "a slow reader overwrites a fast one",
        "freshness/journal.lua",
        "if not why and there[1] == epoch and tonumber(there[2]) > tonumber(read_at) then why = 'raced' end",
        "",
        "test_races.py::test_a_slow_reader_does_not_overwrite_a_fast_one",
    ),
    Sabotage(
        "an entry lives for ever",
        "freshness/journal.lua",
        "call('PEXPIRE', entry, (why and LEASE or TTL) / 1000)",
        "",
        "test_hits.py::test_an_entry_does_not_live_for_ever",
    ),
    Sabotage(
        "a 404 is remembered",
        "views.py",
        "home = get_object_or_404(",
        'if not queries.properties().filter(pk=self.kwargs["id"]): return b"null", {"properties"}\n                home = get_object_or_404(',
        "test_hits.py::test_an_id_that_is_not_there_is_never_remembered",
    ),
    Sabotage(
        "the page of a browser asks the database",
        "views.py",
        'if request.accepted_renderer.format == "api":',
        "if False:",
        "test_hits.py::test_a_browser_gets_a_page_around_the_remembered_bytes",
    ),
    Sabotage(
        "a key is what was asked, word by word",
        "views.py",
        "return query.canonical, read",
        'return request.META["QUERY_STRING"], read',
        "test_hits.py::test_the_same_asked_otherwise_is_the_same_entry",
    ),
    Sabotage(
        "a key leaves out what was asked",
        "views.py",
        "return query.canonical, read",
        'return "", read',
        "test_hits.py::test_every_parameter_has_entries_of_its_own",
    ),
    Sabotage(
        "a key leaves out which property",
        "views.py",
        'return str(self.kwargs["id"]), read',
        'return "", read',
        "test_hits.py::test_every_property_has_an_entry_of_its_own",
    ),
    Sabotage(
        "a link carries the host",
        "views.py",
        "page = query.page(select_of(query).rows(), COLUMNS.pick)",
        "page = query.page(select_of(query).rows(), COLUMNS.pick); object.__setattr__(page, 'next', request.build_absolute_uri(page.next))",
        "test_hits.py::test_the_host_is_no_part_of_the_answer",
    ),
    Sabotage(
        "a detail's SELECTs see two states",
        "views.py",
        "with nullcontext() if ours().in_transaction else ours().snapshot():",
        "if True:",
        "test_races.py::test_a_title_and_images_of_two_states_are_never_one_answer",
    ),
    Sabotage(
        "a page's SELECT is compiled each time",
        "views.py",
        "@lru_cache(maxsize=REMEMBERED)\ndef select_of(",
        "@lru_cache(maxsize=0)\ndef select_of(",
        "test_latency.py::test_a_request_makes_no_more_python_calls_than_are_written_down[a cold page-]",
    ),
    Sabotage(
        "a page's SELECT keeps what it found",
        "queries.py",
        "    def rows(self)",
        "    @__import__('functools').cache\n    def rows(self)",
        "test_invalidation.py::test_a_saved_price_is_in_the_very_next_read",
    ),
    Sabotage(
        "a browser need not ask",
        "views.py",
        '"Cache-Control": "no-cache"',
        '"Cache-Control": "max-age=60"',
        "test_hits.py::test_a_browser_must_ask_each_time",
    ),
)

# Many readers of one answer, and an answer whose time is nearly up.

FILL = (
    Sabotage(
        "of many readers each asks the database",
        "freshness/journal.lua",
        "if taken and together and patient == '1' then return {'filling'} end",
        "",
        "test_races.py::test_of_fifty_cold_readers_one_asks_the_database",
    ),
    Sabotage(
        "nobody says that the database is being asked",
        "freshness/journal.lua",
        "return nil, e, together and not taken",
        "return nil, e, false",
        "test_races.py::test_of_fifty_cold_readers_one_asks_the_database",
    ),
    Sabotage(
        "who need not wait is given what is stale",
        "freshness/journal.lua",
        "if e[3] and not why and (taken or",
        "if e[3] and (taken or not why and",
        "test_races.py::test_while_one_reads_anew_nobody_is_given_what_is_stale",
    ),
    Sabotage(
        "a reader that died is waited for by all who come",
        "freshness/journal.lua",
        "local lately = math.abs(now - math.abs(filling)) < WAIT_TIMEOUT",
        "local lately = true",
        "test_races.py::test_what_a_reader_that_died_was_filling_is_another_ones_after_a_while",
    ),
    Sabotage(
        "a reader is twice as patient as the setting says",
        "freshness/entries.py",
        "monotonic() + conf.WAIT_TIMEOUT",
        "monotonic() + 2 * conf.WAIT_TIMEOUT",
        "test_races.py::test_who_waits_for_a_reader_that_died_does_not_wait_longer_than_its_patience",
    ),
    Sabotage(
        "readers wait where a lease is open",
        "freshness/journal.lua",
        "why ~= 'leased' and why ~= 'recovering' and ",
        "",
        "test_races.py::test_where_a_lease_is_open_nobody_waits",
    ),
    Sabotage(
        "a reader that found nothing does not say so",
        "freshness/entries.py",
        "journal.abandon(key, miss)",
        "pass",
        "test_races.py::test_nobody_waits_for_a_reader_that_found_nothing",
    ),
    Sabotage(
        "after a reader that failed the others wait for each other",
        "freshness/journal.lua",
        "(filling >= 0 or not lately)",
        "true",
        "test_races.py::test_nobody_waits_for_a_reader_that_failed_until_it_is_long_ago",
    ),
    Sabotage(
        "a store ends another reader's fill",
        "freshness/journal.lua",
        "if there[4] == read_at then",
        "if there[4] then",
        "test_races.py::test_who_comes_too_late_to_fill_ends_nobody_elses_fill",
    ),
    Sabotage(
        "a failure ends another reader's fill",
        "freshness/journal.lua",
        "if call('HGET', entry, 'filling') ~= read_at then return end",
        "",
        "test_races.py::test_who_comes_too_late_to_fill_ends_nobody_elses_fill",
    ),
    Sabotage(
        "tags without an answer are an answer",
        "freshness/journal.lua",
        "if e[3] and not why and (",
        "if not why and (",
        "test_races.py::test_what_could_not_be_remembered_is_no_answer_once_its_lease_is_withdrawn",
    ),
    Sabotage(
        "what could not be remembered makes what was look younger",
        "freshness/journal.lua",
        "elseif why == 'raced' or there[3] then",
        "elseif why == 'raced' then",
        "test_races.py::test_what_is_stale_stays_stale_when_a_lease_is_withdrawn",
    ),
    Sabotage(
        "that the database was asked is remembered for ever",
        "freshness/journal.lua",
        "if not e[1] then call('PEXPIRE', entry, WAIT_TIMEOUT / 1000) end",
        "",
        "test_races.py::test_that_somebody_asked_is_soon_forgotten",
    ),
    Sabotage(
        "when the clock steps back readers wait until it has caught up",
        "freshness/journal.lua",
        "math.abs(now - math.abs(filling))",
        "now - math.abs(filling)",
        "test_races.py::test_a_clock_that_steps_back_keeps_nobody_waiting",
    ),
    Sabotage(
        "no answer is read again early",
        "freshness/journal.lua",
        "now + e[4] * draw <",
        "now <",
        "test_races.py::test_an_answer_is_read_again_early_as_often_as_the_formula_says",
    ),
    Sabotage(
        "an answer's time is never up",
        "freshness/journal.lua",
        "(taken or now + e[4] * draw < tonumber(e[5]))",
        "true",
        "test_races.py::test_an_answer_whose_time_is_up_is_read_again",
    ),
    Sabotage(
        "while one reads early the others do, too",
        "freshness/journal.lua",
        "(taken or now",
        "(now",
        "test_races.py::test_while_one_reads_early_the_others_have_the_answer_that_is_there",
    ),
    Sabotage(
        "β is not looked at",
        "freshness/entries.py",
        " * conf.BETA",
        "",
        "test_races.py::test_an_answer_is_read_again_early_as_often_as_the_formula_says",
    ),
    Sabotage(
        "what an answer cost is not remembered",
        "freshness/journal.py",
        "round(cost * 1_000_000)",
        "0",
        "test_races.py::test_an_answer_is_read_again_early_as_often_as_the_formula_says",
    ),
)

SABOTAGES = (*JOURNAL, *TAGS, *COMMIT, *SQL, *READ, *FILL)


# How they are run


class Misfit(Exception):
    """A sabotage whose old text does not stand exactly once in its file."""


def carry_out(sabotage: Sabotage, tree: Path) -> None:
    """Make that line of `tree` wrong. Raises Misfit, and changes nothing, where it does not fit."""
    file = tree / "housing" / sabotage.file
    text = file.read_text(encoding="utf-8")
    if (times := text.count(sabotage.old)) != 1:
        raise Misfit(f"its old text stands {times} times in housing/{sabotage.file}: bring the table up to date")
    file.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")


@contextmanager
def a_copy(root: Path) -> Iterator[Path]:
    """What is needed of the tree, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="housing-sabotage-") as folder:
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, Path(folder, name))
            else:
                shutil.copy2(root / name, folder)
        yield Path(folder)


def outcome(tree: Path, spec: str, patience: int) -> str:
    """What pytest says last of this spec in this tree: "1 failed in 0.12s". Raises TimeoutExpired."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", f"tests/{spec}"]
    ended = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patience, check=False)
    return (ended.stdout.strip().splitlines() or ["nothing"])[-1]


def complaint(sabotage: Sabotage, root: Path = ROOT, patience: int = PATIENCE) -> str | None:
    """What is wrong with a sabotage, in one clause; None if its spec goes red for it."""
    with a_copy(root) as tree:
        try:
            carry_out(sabotage, tree)
            said = outcome(tree, sabotage.spec, patience)
        except Misfit as misfit:
            return str(misfit)
        except subprocess.TimeoutExpired:
            return f"{sabotage.spec} hung for {patience} s"
    if " failed" in said:
        return None
    return f"{sabotage.spec} stays green" if " passed" in said else f"{sabotage.spec} cannot be run: {said}"


def run(sabotages: Sequence[Sabotage], root: Path = ROOT) -> list[str]:
    """All complaints, one line each; a bar shows how far it is. Ctrl-C ends it, and no copy stays."""
    complaints = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers, tqdm(total=len(sabotages), unit="sabotage", smoothing=0) as bar:
        running = {workers.submit(complaint, sabotage, root): sabotage for sabotage in sabotages}
        try:
            for done in as_completed(running):
                if wrong := done.result():
                    complaints.append(f"{running[done].what}: {wrong}")
                    bar.write(complaints[-1])
                bar.update()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    return complaints


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tests.sabotages`: 0 if every spec goes red, 1 if one does not."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sabotages", description="Make one line of housing/ wrong at a time, in a copy, and see its spec go red."
    )
    parser.add_argument("words", nargs="*", help="only those whose description or file has these words in it")
    words = " ".join(parser.parse_args(arguments).words)
    chosen = [sabotage for sabotage in SABOTAGES if words in f"{sabotage.file} {sabotage.what}"]
    if not chosen:
        parser.error(f"no sabotage has “{words}” in its description")
    try:
        complaints = run(chosen)
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"{len(chosen)} sabotages, {len(chosen) - len(complaints)} noticed.")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
