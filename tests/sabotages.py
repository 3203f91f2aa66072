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

COPIED = ("housing", "tests", "conftest.py", "pytest.ini", "manage.py", "images.env", "README.md")
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
        "text(LEASES + j.last + LEASE), {lease",
        "text(LEASES + j.last), {lease",
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
        "for first = 1, #tags, MANY do call('ZADD', journal, 'GT', scored({}, text(expiry), tags, first)) end",
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
        "record(j, text(j.last), split(tags))",
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
        "call('ZREM', journal, lease .. '|' .. tags)\n  settle",
        "call('ZREMRANGEBYSCORE', journal, text(LEASES), '+inf')\n  settle",
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
        'connection.send_command("SCRIPT", "LOAD", text)',
        'connection = client.connection_pool.get_connection(); connection.send_command("SCRIPT", "LOAD", text)',
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
        "call('ZADD', journal, scored({text(-j.last), 'last'}, score, members, 1))",
        "if score then call('ZADD', journal, scored({}, score, members, 1)) end",
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

# A script that breaks half way, and servers that cannot keep the promise.

SERVERS = (
    Sabotage(
        "half way: a close removes its lease before it records",
        "freshness/journal.lua",
        "  record(j, text(j.last), split(tags))\n  call('ZREM', journal, lease .. '|' .. tags)",
        "  call('ZREM', journal, lease .. '|' .. tags)\n  record(j, text(j.last), split(tags))",
        "test_scripts.py::test_a_script_that_breaks_at_any_command_never_makes_an_old_value_a_hit[a lease is open-close]",
    ),
    Sabotage(
        "half way: a lease that ran out is removed before it is recorded",
        "freshness/journal.lua",
        "over[i]:match('|(.*)$')\n",
        "over[i]:match('|(.*)$')\n    call('ZREM', journal, over[i])\n",
        "test_scripts.py::test_a_script_that_breaks_at_any_command_never_makes_an_old_value_a_hit[a lease ran out-lookup]",
    ),
    Sabotage(
        "half way: a new journal gets its lease on everything in a second command",
        "freshness/journal.lua",
        "  call('ZADD', journal, unpack(born))",
        "  call('ZADD', journal, unpack(born, 1, 8)) if not quiet then call('ZADD', journal, unpack(born, 9)) end",
        "test_scripts.py::test_a_script_that_breaks_at_any_command_ends_no_lease[lookup-the journal was lost]",
    ),
    Sabotage(
        "half way: a store writes bytes and tags in two commands",
        "freshness/journal.lua",
        "call('HSET', entry, unpack(fields))",
        "if fields[7] then call('HSET', entry, unpack(fields, 7)) end call('HSET', entry, unpack(fields, 1, 6))",
        "test_scripts.py::test_a_store_that_breaks_never_leaves_new_bytes_under_old_tags",
    ),
    Sabotage(
        "half way: records are dropped before the low-water mark rises",
        "freshness/journal.lua",
        "    call('ZADD', journal, text(TTL - j.last), 'low')\n",
        "    call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL)) call('ZADD', journal, text(TTL - j.last), 'low')\n",
        "test_scripts.py::test_a_close_that_breaks_drops_no_record_that_is_still_needed",
    ),
    Sabotage(
        "many tags: all are on Lua's stack at once",
        "freshness/journal.lua",
        "local MANY = 1000",
        "local MANY = 100000",
        "test_scripts.py::test_a_transaction_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: a close records a thousand",
        "freshness/journal.lua",
        "for first = MANY + 1, #members, MANY do",
        "for first = 1, 0 do",
        "test_scripts.py::test_a_transaction_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: a lease that ran out records a thousand",
        "freshness/journal.lua",
        "for first = 1, #tags, MANY do call('ZADD'",
        "for first = 1, 1 do call('ZADD'",
        "test_scripts.py::test_a_lease_that_ran_out_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: a thousand of an entry's are compared with the closes",
        "freshness/journal.lua",
        "for first = 1, #tags, MANY do\n",
        "for first = 1, 1 do\n",
        "test_scripts.py::test_an_entry_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: a thousand of an entry's are compared with the leases",
        "freshness/journal.lua",
        "mine[tags[first + i - 1]] = true",
        "mine[tags[i]] = true",
        "test_scripts.py::test_an_entry_may_have_any_number_of_tags",
    ),
    Sabotage(
        "an empty key is passed",
        "freshness/journal.py",
        ', entry) if entry else (1, caches[conf.CACHE].make_key("journal"))',
        ", entry)",
        "test_scripts.py::test_a_verb_passes_only_keys_of_the_cache",
    ),
    Sabotage(
        "servers: no INFO is looked at",
        "freshness/journal.py",
        "if why := objection(info):",
        "if why := None:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use",
    ),
    Sabotage(
        "servers: Redis 6.2 will do",
        "freshness/servers.py",
        '"Redis": (7, 0)',
        '"Redis": (6, 2)',
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[Redis 6.2]",
    ),
    Sabotage(
        "servers: a Valkey is as old as the Redis that it imitates",
        "freshness/servers.py",
        "info.get(f'{name.lower()}_version', '')",
        "info.get('redis_version', '')",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[an older Valkey]",
    ),
    Sabotage(
        "servers: a run_id is not needed",
        "freshness/servers.py",
        'if not info.get("run_id") or not version:',
        "if not version:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[no run_id]",
    ),
    Sabotage(
        "servers: a cluster will do",
        "freshness/servers.py",
        'info.get("redis_mode"), ',
        "",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a cluster]",
    ),
    Sabotage(
        "servers: a cluster of Valkey will do",
        "freshness/servers.py",
        ', info.get("server_mode"))',
        ",)",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a cluster of Valkey]",
    ),
    Sabotage(
        "servers: a replica will do",
        "freshness/servers.py",
        'elif info.get("role") == "slave":',
        "elif False:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a replica]",
    ),
    Sabotage(
        "servers: a server without INFO is only unreachable",
        "freshness/journal.py",
        'if "unknown command" not in str(error):',
        "if True:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[no INFO]",
    ),
    Sabotage(
        "servers: permissions are not asked for",
        "freshness/journal.py",
        "if info and (forbidden := connection.read_response()):",
        "if info and (forbidden := connection.read_response() and []):",
        "test_servers.py::test_a_user_who_may_not_run_the_script_is_refused_with_the_rules_to_set",
    ),
    Sabotage(
        "servers: a command that the script runs is not in the rules",
        "freshness/servers.py",
        '"zrem", ',
        "",
        "test_servers.py::test_the_commands_that_an_acl_must_allow_are_those_of_the_script_and_those_that_are_sent",
    ),
    Sabotage(
        "servers: a permission that the script lacks is not named",
        "freshness/journal.py",
        ' or "ACL failure" in str(error)',
        "",
        "test_servers.py::test_a_permission_that_is_taken_away_later_is_named[of a command]",
    ),
    Sabotage(
        "servers: after an error the server is still taken for the same",
        "freshness/journal.py",
        "            self._sha = None\n            self._line.hang_up()",
        "            self._line.hang_up()",
        "test_servers.py::test_a_primary_that_becomes_a_replica_is_refused_after_the_first_error",
    ),
    Sabotage(
        "servers: after a cut connection the server is still taken for the same",
        "freshness/journal.py",
        "                self._sha = None\n",
        "",
        "test_servers.py::test_a_server_behind_a_new_connection_is_asked_what_it_is",
    ),
    Sabotage(
        "servers: one that was refused is asked at every read",
        "freshness/journal.py",
        "if self._refused and monotonic() < self._refused[0]:",
        "if False:",
        "test_servers.py::test_a_replica_that_is_promoted_is_used_without_a_restart",
    ),
    Sabotage(
        "servers: one that was refused is never asked again",
        "freshness/journal.py",
        "if self._refused and monotonic() < self._refused[0]:",
        "if self._refused:",
        "test_servers.py::test_a_replica_that_is_promoted_is_used_without_a_restart",
    ),
    Sabotage(
        "servers: check --deploy says nothing of a refused one",
        "freshness/checks.py",
        "return [checks.Error(refused.reason, hint=refused.remedy",
        "return [] and [checks.Error(refused.reason, hint=refused.remedy",
        "test_servers.py::test_check_deploy_refuses_a_server_that_cannot_keep_the_promise",
    ),
    Sabotage(
        "servers: /health/ says nothing of a refused one",
        "views.py",
        '        state["cache"] = f"refused: {refused}"',
        "        refused",
        "test_servers.py::test_health_says_why_a_server_is_refused",
    ),
    Sabotage(
        "a thread without a connection keeps the one that it gave back",
        "freshness/journal.py",
        "        self.pool = self.connection = None",
        "        pass",
        "test_servers.py::test_a_thread_that_gets_no_connection_does_not_keep_the_one_that_it_gave_back",
    ),
)

# What a write invalidates, and what a response depends on: both are read off the query.

TAGS = (
    Sabotage(
        "a response does not depend on the rows that it shows",
        "freshness/dependencies.py",
        'rows.append((position, f"{table.name}:", table.pk_text))',
        "pass",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Office.name to Office deleted]",
    ),
    Sabotage(
        "a response does not depend on the columns that select it",
        "freshness/dependencies.py",
        'self.tags |= {f"{table.name}.{column}" for column in columns}',
        "pass",
        "test_invalidation.py::test_a_row_enters_and_leaves_a_filtered_page[status-sold-status=sold]",
    ),
    Sabotage(
        "a response does not depend on which rows there are",
        "freshness/dependencies.py",
        'self.tags.add(f"{table.name}:+")',
        "pass",
        "test_invalidation.py::test_a_created_property_is_first_in_the_very_next_read",
    ),
    Sabotage(
        "a response does not depend on a row that was read and is not shown",
        "freshness/dependencies.py",
        "if read is not None and read > len(shown):",
        "if False:",
        "test_invalidation.py::test_the_21st_row_leaves_and_the_page_has_no_next",
    ),
    Sabotage(
        "a response does not depend on writes whose rows are not known",
        "freshness/dependencies.py",
        'self.tags.add(f"{table.name}:*")',
        "pass",
        "test_invalidation.py::test_every_way_of_writing_is_in_the_very_next_read[in autocommit]",
    ),
    Sabotage(
        "a response does not depend on the rows that refer to what it shows",
        "freshness/dependencies.py",
        "self.tags |= self.scopes[alias]",
        "pass",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
    ),
    Sabotage(
        "a response does not depend on the column that leads to what selects it",
        "freshness/dependencies.py",
        "self.selecting[parent].update(left for left, _ in join.join_cols)",
        "pass",
        "test_invalidation.py::test_a_property_moves_to_another_agent",
    ),
    Sabotage(
        "an UPDATE does not say which columns it writes",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{field.column}")',
        "pass",
        "test_invalidation.py::test_a_price_moves_a_row_to_another_page[price-19-1]",
    ),
    Sabotage(
        "an UPDATE does not say which row it writes",
        "freshness/compiler.py",
        'tags = {table.name, *(f"{table.name}:{key}" for key in keys)}',
        "tags = {table.name}",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[Office.name to Office deleted]",
    ),
    Sabotage(
        "an UPDATE does not say to which row its row refers now",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{field.column}={text(_prepared(field, value))}")',
        "pass",
        "test_invalidation.py::test_an_image_leaves_its_old_owner",
    ),
    Sabotage(
        "an UPDATE to what only the database can tell counts as none",
        "freshness/compiler.py",
        "                if not is_known:",
        "                if False:",
        "test_invalidation.py::test_an_owner_that_only_the_database_can_tell",
    ),
    Sabotage(
        "an INSERT does not say that there is a row more",
        "freshness/compiler.py",
        'tags = {table.name, f"{table.name}:+"}',
        "tags = {table.name}",
        "test_invalidation.py::test_a_created_property_is_first_in_the_very_next_read",
    ),
    Sabotage(
        "an INSERT does not say to which row its row refers",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{column}={text(_prepared(written[column], value))}")',
        "pass",
        "test_precision.py::test_each_column_makes_stale_what_the_table_says_and_nothing_else[PropertyImage.property to PropertyImage deleted]",
    ),
    Sabotage(
        "an upsert counts as an INSERT",
        "freshness/compiler.py",
        "if self.query.on_conflict == OnConflict.UPDATE:",
        "if False:",
        "test_invalidation.py::test_an_upsert_is_in_the_next_read_of_the_row_that_was_there",
    ),
    Sabotage(
        "a DELETE does not say which rows it deletes",
        "freshness/compiler.py",
        'tags.update(f"{table.name}:{table.pk_text(value)}" for value in values)',
        "pass",
        "test_invalidation.py::test_a_deleted_property_is_gone_from_the_very_next_read[with images]",
    ),
    Sabotage(
        "a DELETE does not say that there is a row less",
        "freshness/compiler.py",
        'tags = {table.name, f"{table.name}:-"}',
        "tags = {table.name}",
        "test_invalidation.py::test_the_21st_row_leaves_and_the_page_has_no_next",
    ),
    Sabotage(
        "a save is taken to write what differs from a row that nobody locked",
        "freshness/connection.py",
        "return self.managed and self.begun",
        "return True",
        "test_invalidation.py::test_a_locked_read_with_nothing_behind_it_is_certain_of_nothing",
    ),
    Sabotage(
        "a lock is held after its savepoint",
        "freshness/connection.py",
        "self.scopes, cut = self.scopes[:at], self.scopes[at:]",
        "self.scopes, cut = self.scopes[:at], self.scopes[at:]; self.scopes[-1].held |= cut[0].held",
        "test_invalidation.py::test_a_lock_taken_under_a_savepoint_goes_with_its_rollback",
    ),
    Sabotage(
        "a lock of a joined row counts as one of the row",
        "freshness/compiler.py",
        '(of and "self" not in of)',
        "False",
        "test_invalidation.py::test_a_lock_of_a_joined_row_is_none_of_the_row_itself",
    ),
    Sabotage(
        "a lock is of any row",
        "freshness/connection.py",
        "held[table.name, table.pk_text(key)] = values",
        "[held.__setitem__((table.name, str(each)), values) for each in range(10_000)]",
        "test_invalidation.py::test_a_lock_is_of_one_row",
    ),
    Sabotage(
        "a group does not depend on the column that it is made by",
        "freshness/dependencies.py",
        'self._walk(each if hasattr(each, "as_sql") else self.query.resolve_ref(each))',
        "pass",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a group by a column that is not shown]",
    ),
    Sabotage(
        "a column that is shown without a key is not depended on",
        "freshness/dependencies.py",
        "columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)",
        "columns |= self.ordering[alias] | self._joined_by(alias)",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[values_list() without a key]",
    ),
    Sabotage(
        "a column that leads to a row without a key is not depended on",
        "freshness/dependencies.py",
        "columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)",
        "columns |= self.shown[alias] | self.ordering[alias]",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a join without a key]",
    ),
    Sabotage(
        "rows before an offset do not count",
        "freshness/dependencies.py",
        "self.counts_others = bool(query.low_mark)",
        "self.counts_others = False",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[rows beyond an offset]",
    ),
    Sabotage(
        "rows that a window counts do not count",
        "freshness/dependencies.py",
        "self.counts_others = self.counts_others or isinstance(expression, Window)",
        "pass",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a window]",
    ),
    Sabotage(
        "a row that moves to another owner does not leave",
        "freshness/dependencies.py",
        'leaving = {tag.partition("=")[0] for tag in self.scopes[alias]}',
        "leaving = set()",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a reference's rows beyond an offset, of which one is moved away]",
    ),
    Sabotage(
        "a row that was named is not missed where it was not shown",
        "freshness/dependencies.py",
        "(self.tags if position is None or self.counts_others else hidden).update(leaving)",
        "alias in self.by_pk or (self.tags if position is None or self.counts_others else hidden).update(leaving)",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[named rows beyond an offset, of which one is deleted]",
    ),
    Sabotage(
        "rows that are read and not shown have no order",
        "freshness/dependencies.py",
        'hidden |= {f"{table.name}.{column}" for column in self.ordering[alias]}',
        "pass",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[the first of rows that are all read]",
    ),
    Sabotage(
        "a row that was named and not found is not awaited",
        "freshness/dependencies.py",
        "found.add(pin.missing)",
        "pass",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[in_bulk()]",
    ),
    Sabotage(
        "a slice does not depend on its order",
        "freshness/dependencies.py",
        "if not (self.query.is_sliced or self.query.distinct_fields):",
        "if True:",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[an ordering]",
    ),
    Sabotage(
        "the condition of a FilteredRelation is not read",
        "freshness/dependencies.py",
        "if filtered := join.filtered_relation:",
        "if False:",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a FilteredRelation]",
    ),
    Sabotage(
        "the content type of a generic relation is not read",
        "freshness/dependencies.py",
        "if restriction := join.join_field.get_extra_restriction(alias, join.parent_alias):",
        "if False:",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a generic relation to which a row of another one comes]",
    ),
    Sabotage(
        "a reference from a joined row is not depended on",
        "freshness/dependencies.py",
        "            if not forward:\n                self.selecting[alias].add(right)",
        "            if False:\n                self.selecting[alias].add(right)",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[the other end of a one-to-one reference, moved here]",
    ),
    Sabotage(
        "an inner query is not read",
        "freshness/dependencies.py",
        "self.tags.add(self._table(join.table_name).name)",
        "self._table(join.table_name)",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a Subquery]",
    ),
    Sabotage(
        "the parts of a union() are not read",
        "freshness/dependencies.py",
        "for combined in query.combined_queries:",
        "for combined in ():",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[union()]",
    ),
    Sabotage(
        "the inner query of an aggregate is not read",
        "freshness/dependencies.py",
        'if isinstance(inner := getattr(query, "inner_query", None), Query):',
        "if False:",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[count() of a slice]",
    ),
    Sabotage(
        "a row that only appears in a join counts as created",
        "freshness/dependencies.py",
        "implied = {alias for alias in self.joins if self._is_implied(alias)}",
        "implied = set()",
        "test_dependencies.py::test_a_row_that_only_appears_in_a_join_leaves_the_page_warm",
    ),
    Sabotage(
        "a reference that the database does not enforce implies its row",
        "freshness/dependencies.py",
        'getattr(field, "db_constraint", False)',
        "True",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a reference that the database does not enforce]",
    ),
    Sabotage(
        "a row that is referred to is not told apart by the reference",
        "freshness/dependencies.py",
        "same.append((join.parent_alias, join.join_cols[0][0]))",
        "pass",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[values() of a joined row by the reference to it]",
    ),
    Sabotage(
        "a composite primary key takes one place",
        "freshness/dependencies.py",
        "place += len(expression) if isinstance(expression, ColPairs) else 1",
        "place += 1",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a composite primary key]",
    ),
    Sabotage(
        "what may be a view is a table",
        "freshness/dependencies.py",
        "if not table.managed:",
        "if False:",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[an unmanaged model over a view]",
    ),
    Sabotage(
        "SQL as text in a query is passed over",
        "freshness/dependencies.py",
        "if isinstance(expression, RawSQL | ExtraWhere):",
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[extra(where)]",
    ),
    Sabotage(
        "extra() is passed over",
        "freshness/dependencies.py",
        "if query.extra_tables or query.extra_order_by or any(",
        "if any(",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[extra(tables)]",
    ),
    Sabotage(
        "SQL in the template of a function is passed over",
        "freshness/dependencies.py",
        "if template and SELECT.search(template):",
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[a function whose template is a query]",
    ),
    Sabotage(
        "a function of nothing is passed over",
        "freshness/dependencies.py",
        "if not is_djangos and not function.source_expressions:",
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[a function of nothing]",
    ),
    Sabotage(
        "the time of day is passed over",
        "freshness/dependencies.py",
        'if type(expression).__name__ in ("Now", "TransactionNow"):',
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[the time of day]",
    ),
    Sabotage(
        "the joins of a union()'s parts are passed over",
        "freshness/dependencies.py",
        "        if query.select_related:\n",
        "        if False:\n",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[a union() whose parts have select_related()]",
    ),
    Sabotage(
        "a model that is not tracked is passed over",
        "freshness/dependencies.py",
        'raise Unreadable(f"It reads {name}, which is not tracked. Add {label_of(name)} to FRESHNESS_MODELS.") from None',
        "return Table(name, name, None, None, {})",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[a model that is not tracked]",
    ),
    Sabotage(
        "a response of no query is stored",
        "freshness/dependencies.py",
        "if self.unreadable is None and not self.queries:",
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[no query at all]",
    ),
    Sabotage(
        "SQL through a cursor is passed over",
        "freshness/connection.py",
        "        elif not judged.tables:\n            self._read_as_text(sql)",
        "        elif not judged.tables:\n            pass",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[a cursor]",
    ),
    Sabotage(
        "another database is passed over",
        "freshness/entries.py",
        "if not isinstance(connections[alias], ConnectionMixin):",
        "if False:",
        "test_dependencies.py::test_an_unreadable_response_is_served_and_never_stored[another database]",
    ),
    Sabotage(
        "a query that no row can match counts as none",
        "freshness/compiler.py",
        "            recording.queries += 1\n            return result",
        "            return result",
        "test_dependencies.py::test_a_query_that_no_row_can_match_is_stored",
    ),
    Sabotage(
        "the rows of an iterator are not noted",
        "freshness/compiler.py",
        "        recording.note(reading, chunk)\n        yield chunk",
        "        yield chunk",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[iterator()]",
    ),
    Sabotage(
        "an UPDATE does not say which columns the database makes of others",
        "freshness/compiler.py",
        '{f"{table.name}.{column}" for column in table.generated}',
        "set()",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a column that the database generates]",
    ),
    Sabotage(
        "an UPDATE of a key says which row it was",
        "freshness/compiler.py",
        "            if field.primary_key:\n                return self._say(table, (), table.all)",
        "",
        "test_dependencies.py::test_every_shape_of_query_is_in_the_next_read[a row by a key that another one takes]",
    ),
    Sabotage(
        "an INSERT whose reference the database fills in refers to nothing",
        "freshness/compiler.py",
        '                if hasattr(value, "resolve_expression"):\n                    return self._say(table, (), table.all)',
        '                if hasattr(value, "resolve_expression"):\n                    continue',
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a reference that the database fills in]",
    ),
    Sabotage(
        "a row that is created again is a new one",
        "freshness/compiler.py",
        'if self.connection.has_tagged(table.name, f"{table.name}:-") and',
        "if False and",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a row that is created again under the key of one deleted in the same transaction]",
    ),
    Sabotage(
        "a write through a view writes the view",
        "freshness/compiler.py",
        "if table.managed if table else self.query.get_meta().managed:",
        "if table or self.query.get_meta().managed:",
        "test_kinds.py::test_a_write_through_a_view_of_the_database_is_in_the_next_read",
    ),
    Sabotage(
        "SQL that writes a view writes the view",
        "freshness/statements.py",
        "return touched if all(tracking.tables()[table].managed for table in touched) else everything",
        "return touched",
        "test_kinds.py::test_a_write_through_a_view_of_the_database_is_in_the_next_read",
    ),
    Sabotage(
        "JSON's true is its 1",
        "freshness/connection.py",
        "and not _differ_in_json(held[column], value)",
        "",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[JSON whose number becomes a truth]",
    ),
    Sabotage(
        "a UUID is the text of its column",
        "freshness/tracking.py",
        "return lambda value: str(value if isinstance(value, UUID) else UUID(str(value)))",
        "return str",
        "test_kinds.py::test_every_kind_of_model_is_in_the_next_read[a model with a UUID for a key]",
    ),
    Sabotage(
        "the tables of many-to-many fields are not tracked",
        "freshness/tracking.py",
        "*(field.remote_field.through for field in opts.many_to_many)",
        "",
        "test_kinds.py::test_a_model_that_is_named_brings_its_parents_and_many_to_many_tables",
    ),
    Sabotage(
        "the parents of a model are not tracked",
        "freshness/tracking.py",
        "*opts.get_parent_list(),",
        "",
        "test_kinds.py::test_a_model_that_is_named_brings_its_parents_and_many_to_many_tables",
    ),
    Sabotage(
        "equal values of a column with a collation are told apart",
        "freshness/tracking.py",
        ' and not getattr(field, "db_collation", None)',
        "",
        "test_kinds.py::test_values_that_a_database_takes_for_equal_are_not_told_apart",
    ),
    Sabotage(
        "two models of one table tell its rows apart by the first one's references",
        "freshness/tracking.py",
        "references = {column: made for column, made in one.references.items() if column in other.references}",
        "references = one.references",
        "test_kinds.py::test_two_models_of_one_table_are_one_table",
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
        "return any(scope.tags for scope in self.scopes)",
        "return bool(self.scopes[-1].tags)",
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
        "[tracking.cascades().get(table, NOTHING) for table in written if deletes]",
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
        "with self.db.statement(text), self.db.wrap",
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
        "            found = super().execute(sql, params)\n        return self if found is self.cursor else found",
        "            found = super().execute(sql, params)\n        return found",
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
        "{model._meta.db_table for model in apps.get_models(include_auto_created=True) if model._meta.managed}",
        "{model._meta.db_table for model in apps.get_models() if model._meta.managed}",
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
        "except (refusals.NoScriptError, refusals.ConnectionError):",
        "except refusals.NoScriptError:",
        "test_hits.py::test_who_finds_its_connection_dead_asks_once_more",
    ),
    Sabotage(
        "an answer that nobody has read is left for who asks next",
        "freshness/journal.py",
        "            self.connection.disconnect()\n            raise\n",
        "            raise\n",
        "test_hits.py::test_who_is_interrupted_between_question_and_response_does_not_take_it_for_the_next",
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
        "self.give_back()\n        self.pool",
        "self.pool",
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
        "verdict = journal.store(key, found, recording.tags, etag_of(body), body, seconds)",
        "journal.lookup(key); verdict = journal.store(key, found, recording.tags, etag_of(body), body, seconds)",
        "test_cost.py::test_a_miss_costs_two_round_trips",
    ),
    Sabotage(
        "a pickle is remembered",
        "freshness/entries.py",
        "verdict = journal.store(key, found, recording.tags, etag_of(body), body, seconds)",
        'verdict = journal.store(key, found, recording.tags, etag_of(body), __import__("pickle").dumps(body), seconds)',
        "test_hits.py::test_what_is_remembered_is_bytes_and_no_pickle",
    ),
    Sabotage(
        "a key carries no fingerprint",
        "freshness/keys.py",
        ":{shape}:",
        ":",
        "test_keys.py::test_a_deploy_with_another_fingerprint_finds_nothing",
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
        "freshness/views.py",
        "return transaction.non_atomic_requests(super().as_view(*args, **initkwargs))",
        "return super().as_view(*args, **initkwargs)",
        "test_hits.py::test_atomic_requests_leaves_the_cached_variants_out",
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
        "freshness/views.py",
        'if request.accepted_renderer.format == "api":',
        "if False:",
        "test_hits.py::test_a_browser_gets_a_page_around_the_remembered_bytes",
    ),
    Sabotage(
        "a key is what was asked, word by word",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", request.META["QUERY_STRING"], read',
        "test_hits.py::test_the_same_asked_otherwise_is_the_same_entry",
    ),
    Sabotage(
        "a key leaves out what was asked",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", "", read',
        "test_hits.py::test_every_parameter_has_entries_of_its_own",
    ),
    Sabotage(
        "a key leaves out which property",
        "views.py",
        'return "detail", str(self.kwargs["id"]), read',
        'return "detail", "", read',
        "test_hits.py::test_every_property_has_an_entry_of_its_own",
    ),
    Sabotage(
        "a link carries the host",
        "views.py",
        "return rendered(page.body(",
        "object.__setattr__(page, 'next', request.build_absolute_uri(page.next)); return rendered(page.body(",
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
        "@lru_cache(maxsize=KEPT)\ndef select_of(",
        "@lru_cache(maxsize=0)\ndef select_of(",
        "test_latency.py::test_a_request_makes_no_more_python_calls_than_are_written_down[a cold page-]",
    ),
    Sabotage(
        "a page's SELECT keeps what it found",
        "freshness/dependencies.py",
        "    def rows(self, shown",
        "    @__import__('functools').cache\n    def rows(self, shown",
        "test_invalidation.py::test_a_saved_price_is_in_the_very_next_read",
    ),
    Sabotage(
        "a browser need not ask",
        "freshness/views.py",
        '"Cache-Control": "no-cache"',
        '"Cache-Control": "max-age=60"',
        "test_hits.py::test_a_browser_must_ask_each_time",
    ),
)

# What stands in a key: the fingerprint, and the identity of the database.

KEYS = (
    Sabotage(
        "a setting counts only if somebody thought of it",
        "freshness/fingerprint.py",
        "[code_in_force(), *settings_in_force()]",
        "[code_in_force()]",
        "test_keys.py::test_a_setting_that_nobody_knows_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no code",
        "freshness/fingerprint.py",
        "[code_in_force(), *settings_in_force()]",
        "settings_in_force()",
        "test_keys.py::test_every_source_file_of_the_service_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint is keyed with nothing",
        "freshness/fingerprint.py",
        'salted_hmac("freshness.fingerprint", "\\n".join(',
        'salted_hmac("freshness.fingerprint", secret="none", value="\\n".join(',
        "test_keys.py::test_the_key_that_signs_the_links_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no library",
        "freshness/fingerprint.py",
        "*distributions()]",
        "]",
        "test_keys.py::test_each_version_of_an_installed_library_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers any Python",
        "freshness/fingerprint.py",
        "sys.version_info[:3]",
        "()",
        "test_keys.py::test_another_python_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no script",
        "freshness/fingerprint.py",
        '".lua", ',
        "",
        "test_keys.py::test_every_source_file_of_the_service_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no template",
        "freshness/fingerprint.py",
        ' or not TEMPLATES.isdisjoint(name.split("/")[:-1])',
        "",
        "test_keys.py::test_every_source_file_of_the_service_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no template outside a package",
        "freshness/fingerprint.py",
        "enumerate([*folders, *settings.LOCALE_PATHS])",
        "enumerate([])",
        "test_keys.py::test_templates_and_translations_outside_every_package_change_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers apps alone",
        "freshness/fingerprint.py",
        "if isinstance(module, str):",
        "if False:",
        "test_keys.py::test_a_source_file_that_appears_or_disappears_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers the source of every library",
        "freshness/fingerprint.py",
        "if not _is_library(Path(app.path)):",
        "if True:",
        "test_keys.py::test_a_library_counts_with_its_version_and_not_with_its_source",
    ),
    Sabotage(
        "a project leaves no setting out",
        "freshness/fingerprint.py",
        " | {*conf.IGNORED_SETTINGS}",
        "",
        "test_keys.py::test_a_project_leaves_settings_of_its_own_out",
    ),
    Sabotage(
        "a set has another text in each process",
        "freshness/fingerprint.py",
        "{sorted(texts(value))}",
        "{texts(value)}",
        "test_keys.py::test_two_processes_make_the_same_fingerprint",
    ),
    Sabotage(
        "a dict has another text in each process",
        "freshness/fingerprint.py",
        "sorted(zip(",
        "list(zip(",
        "test_keys.py::test_two_processes_make_the_same_fingerprint",
    ),
    Sabotage(
        "an object has no state",
        "freshness/fingerprint.py",
        "{texts(list(part) if isinstance(part, Iterator) else part for part in parts)}",
        "",
        "test_keys.py::test_the_text_of_a_setting_says_all_that_distinguishes_it",
    ),
    Sabotage(
        "a setting that cannot be compared counts for nothing",
        "freshness/fingerprint.py",
        "_text_or(_secret_of_this_process, ",
        "_text_or(str, ",
        "test_keys.py::test_a_setting_that_cannot_be_compared_makes_a_fingerprint_of_this_process_alone",
    ),
    Sabotage(
        "the code is read at the first request",
        "freshness/apps.py",
        "fingerprint.code_in_force()",
        "",
        "test_keys.py::test_a_process_keeps_the_code_that_it_started_with",
    ),
    Sabotage(
        "a changed setting leaves the fingerprint",
        "freshness/fingerprint.py",
        "fingerprint.cache_clear()",
        "pass",
        "test_keys.py::test_a_changed_setting_of_a_library_finds_nothing",
    ),
    Sabotage(
        "a changed cache leaves the keys",
        "freshness/keys.py",
        "_with_prefix.cache_clear()",
        "pass",
        "test_keys.py::test_a_cache_with_another_prefix_has_other_keys",
    ),
    Sabotage(
        "a key carries no database",
        "freshness/keys.py",
        ":{database}:",
        ":",
        "test_keys.py::test_another_database_at_the_same_address_finds_nothing",
    ),
    Sabotage(
        "identity: a copy of a file is the file",
        "freshness/identity.py",
        "repr((place, facts))",
        "repr(facts)",
        "test_keys.py::test_a_copy_of_the_database_at_the_same_address_finds_nothing",
    ),
    Sabotage(
        "identity: the id does not count",
        "freshness/sqlite3/base.py",
        '"SELECT id, ',
        '"SELECT 1, ',
        "test_keys.py::test_another_id_in_the_database_makes_all_keys_new",
    ),
    Sabotage(
        "identity: a file restored in place is the file before",
        "freshness/sqlite3/base.py",
        "(SELECT schema_version FROM pragma_schema_version)",
        "1",
        "test_keys.py::test_a_file_restored_by_sqlite_itself_finds_nothing",
    ),
    Sabotage(
        "identity: nobody looks at the file",
        "freshness/identity.py",
        "self.place() in (None, place)",
        "True",
        "test_keys.py::test_a_file_exchanged_under_an_open_connection_is_opened_again",
    ),
    Sabotage(
        "identity: a hit needs the file",
        "freshness/identity.py",
        "self.place() in (None, place)",
        "self.place() == place",
        "test_keys.py::test_a_file_that_is_away_leaves_warm_pages_warm",
    ),
    Sabotage(
        "identity: a file that was exchanged while it was opened counts",
        "freshness/identity.py",
        "if place != self.place():",
        "if False:",
        "test_keys.py::test_a_file_exchanged_while_it_is_opened_stores_nothing_under_the_old_key",
    ),
    Sabotage(
        "identity: an old connection decides for its thread",
        "freshness/identity.py",
        " and (self.connection is None or self.identity == identity)",
        "",
        "test_keys.py::test_the_newest_connection_of_a_process_decides_for_all_its_threads",
    ),
    Sabotage(
        "identity: what was read elsewhere is stored",
        "freshness/entries.py",
        "if connection.identity != database:",
        "if False:",
        "test_keys.py::test_a_connection_that_turns_out_to_lead_elsewhere_stores_nothing_under_the_old_key",
    ),
    Sabotage(
        "identity: a database without one is cached",
        "freshness/identity.py",
        "if self.identity is None:",
        "if False:",
        "test_keys.py::test_a_database_without_an_identity_is_read_without_the_cache",
    ),
    Sabotage(
        "identity: it is read for each response",
        "freshness/identity.py",
        "if identity and ",
        "if False and ",
        "test_keys.py::test_the_identity_is_read_once_for_each_connection_and_is_no_query",
    ),
    Sabotage(
        "identity: every database has the same id",
        "freshness/migrations/0001_database.py",
        "create(id=uuid4())",
        'create(id="f3b1a8a1-ac0a-4a7f-8a5b-3b1f8a1c0a4a")',
        "test_keys.py::test_each_database_is_migrated_to_an_id_of_its_own",
    ),
    Sabotage(
        "identity: a first migration is warned of itself",
        "freshness/checks.py",
        "if MigrationRecorder(connection).has_table():",
        "if True:",
        "test_keys.py::test_a_database_that_was_never_migrated_is_no_problem_yet",
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
        "test_races.py::test_what_could_not_be_remembered_is_no_response_once_its_lease_is_withdrawn",
    ),
    Sabotage(
        "what could not be remembered makes what was look younger",
        "freshness/journal.lua",
        "if not (why == 'raced' or why and there[3]) then",
        "if why ~= 'raced' then",
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
        "test_races.py::test_a_response_is_read_again_early_as_often_as_the_formula_says",
    ),
    Sabotage(
        "an answer's time is never up",
        "freshness/journal.lua",
        "(taken or now + e[4] * draw < tonumber(e[5]))",
        "true",
        "test_races.py::test_a_response_whose_time_is_up_is_read_again",
    ),
    Sabotage(
        "while one reads early the others do, too",
        "freshness/journal.lua",
        "(taken or now",
        "(now",
        "test_races.py::test_while_one_reads_early_the_others_have_the_response_that_is_there",
    ),
    Sabotage(
        "β is not looked at",
        "freshness/entries.py",
        " * conf.BETA",
        "",
        "test_races.py::test_a_response_is_read_again_early_as_often_as_the_formula_says",
    ),
    Sabotage(
        "what an answer cost is not remembered",
        "freshness/journal.py",
        "round(cost * 1_000_000)",
        "0",
        "test_races.py::test_a_response_is_read_again_early_as_often_as_the_formula_says",
    ),
)

# The engine in a project of its own.

HOME = (
    Sabotage(
        "a fill that writes in SQL is read again",
        "freshness/connection.py",
        """recording.refuse(f"It writes""",
        """str(f"It writes""",
        "test_drf_views.py::test_a_get_that_writes_in_sql_is_never_stored_and_writes_once",
    ),
    Sabotage(
        "a view whose queryset is none() cannot be checked",
        "freshness/checks.py",
        "with suppress(EmptyResultSet):",
        "with suppress():",
        "test_take_home.py::test_django_finds_nothing_wrong_with_the_blog",
    ),
    Sabotage(
        "a key does not carry the language",
        "freshness/views.py",
        "{address} {translation.get_language()} ",
        "{address} ",
        "test_drf_views.py::test_each_language_and_each_time_zone_has_its_own_response",
    ),
    Sabotage(
        "a key does not carry the time zone",
        "freshness/views.py",
        " {timezone.get_current_timezone_name()}",
        "",
        "test_drf_views.py::test_each_language_and_each_time_zone_has_its_own_response",
    ),
    Sabotage(
        "a viewset's actions are those of another view",
        "freshness/views.py",
        "setattr(view, method, getattr(view, action))",
        "pass",
        "test_drf_views.py::test_paginations_filters_annotations_prefetches_and_viewsets_are_cached[/other/set/]",
    ),
    Sabotage(
        "arguments of as_view() do not reach the view that fills",
        "freshness/views.py",
        "view: Any = copy.copy(self)",
        "view: Any = type(self)()",
        "test_drf_views.py::test_arguments_of_as_view_reach_the_cached_response",
    ),
    Sabotage(
        "a view may have any permissions",
        "freshness/views.py",
        "if each not in READ_BY_EVERYBODY",
        "if False",
        "test_drf_views.py::test_a_view_that_not_everybody_may_read_is_refused_when_it_is_loaded",
    ),
    Sabotage(
        "a view may decide in a method who reads",
        "freshness/views.py",
        "if name in vars(each)",
        "if False",
        "test_drf_views.py::test_a_view_that_not_everybody_may_read_is_refused_when_it_is_loaded",
    ),
    Sabotage(
        "a write needs no permission",
        "freshness/views.py",
        "return [] if self._is_read else super().get_permissions()",
        "return []",
        "test_drf_views.py::test_a_viewset_keeps_the_permissions_of_its_writes",
    ),
    Sabotage(
        "a reader is authenticated",
        "freshness/views.py",
        "return [] if self._is_read and not self._is_filling else super().get_authenticators()",
        "return super().get_authenticators()",
        "test_drf_views.py::test_a_reader_with_a_session_costs_no_query",
    ),
    Sabotage(
        "a hit is not throttled",
        "freshness/views.py",
        " or self.throttle_classes",
        "",
        "test_drf_views.py::test_a_throttle_counts_hits_too",
    ),
    Sabotage(
        "what is stored has the format of the address",
        "freshness/views.py",
        "for renderer in self.get_renderers() if self._is_filling else ():",
        "for renderer in ():",
        "test_drf_views.py::test_an_address_that_asks_for_the_browsable_page_gets_it",
    ),
    Sabotage(
        "a response is stored without its headers",
        "freshness/views.py",
        "if more := _more_than_json(response):",
        "if more := None:",
        "test_drf_views.py::test_a_response_that_is_more_than_json_is_served_whole_and_never_stored",
    ),
    Sabotage(
        "a header that is read is not noted",
        "freshness/requests.py",
        'note(f"the header {name}")',
        "pass",
        "test_drf_views.py::test_a_view_that_looks_at_its_reader_is_served_and_never_stored[by-header-the header X-Author]",
    ),
    Sabotage(
        "META that is read is not noted",
        "freshness/requests.py",
        'note("the request\'s body" if',
        'str("the request\'s body" if',
        "test_drf_views.py::test_a_view_that_looks_at_its_reader_is_served_and_never_stored",
    ),
    Sabotage(
        "what a middleware added is not noted",
        "freshness/requests.py",
        "(name in self._added or name",
        "(name",
        "test_drf_views.py::test_a_view_that_looks_at_its_reader_is_served_and_never_stored",
    ),
    Sabotage(
        "the order of the parameters is the first reader's",
        "freshness/requests.py",
        "for name in sorted(request.GET):",
        "for name in request.GET:",
        "test_drf_views.py::test_the_order_of_the_parameters_does_not_reach_the_bytes",
    ),
    Sabotage(
        "a window looks at no more rows than it returns",
        "freshness/dependencies.py",
        "self.counts_others = self.counts_others or isinstance(expression, Window)",
        "pass",
        "test_drf_views.py::test_a_deleted_row_moves_the_ranks_of_the_rows_that_stay",
    ),
    Sabotage(
        "what groups a query cannot be read",
        "freshness/dependencies.py",
        "        for each in self.query.group_by if isinstance(self.query.group_by, tuple) else ():\n",
        '        if self.query.group_by is not None:\n            raise Unreadable("It groups.")\n        for each in ():\n',
        "test_drf_views.py::test_paginations_filters_annotations_prefetches_and_viewsets_are_cached[/other/counted/]",
    ),
    Sabotage(
        "a random order is stored",
        "freshness/dependencies.py",
        '("Random", "RandomUUID")',
        "()",
        "test_drf_views.py::test_a_random_order_is_not_stored",
    ),
    Sabotage(
        "a GET that is cached may write",
        "freshness/compiler.py",
        "if recorder() is not None:",
        "if False:",
        "test_drf_views.py::test_a_get_that_writes_is_refused",
    ),
)

SABOTAGES = (*JOURNAL, *SERVERS, *TAGS, *COMMIT, *SQL, *READ, *KEYS, *FILL, *HOME)


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
