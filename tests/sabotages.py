"""One-line sabotages of `housing`, each with the spec that has to fail for it.

    python -m tests.sabotages            run all of them; exit with 1 if a spec still passes, or a sabotage no longer fits the code
    python -m tests.sabotages WORDS      run those whose description or file contains these words

Each sabotage runs in a copy of the tree, in a temporary folder. The tree itself is never changed. `make mutants` runs them all.
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

from tests.stacks import STACKS

ROOT = Path(__file__).resolve().parent.parent

COPIED = ("housing", "tests", "conftest.py", "pytest.ini", "manage.py", "images.env", "README.md")
"""The parts of the tree that the specs below need."""

TIMEOUT = 120
"""Seconds after which a spec counts as hung."""


@dataclass(frozen=True)
class Sabotage:
    """One wrong line of `file` (in `housing/`), and the spec (in `tests/`) that has to fail for it."""

    what: str
    file: str
    old: str
    new: str
    spec: str
    stack: str = "embedded"


def judged(text: str) -> str:
    """The spec that judges this SQL text."""
    return f"test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise[{text}]"


# The bound: each of its defences by name, and what verifies.

BOUND = (
    Sabotage(
        "bounded hit: the age of the verification is not compared",
        "freshness/journal.lua",
        "if not (j.verified and j.verified <= now and now <= j.verified + MAX_STALENESS) then",
        "if false then",
        "test_verification.py::test_a_response_is_at_most_the_bound_old_even_if_every_watchman_is_dead",
    ),
    Sabotage(
        "bounded hit: a verification in the future counts",
        "freshness/journal.lua",
        "j.verified <= now and now <=",
        "now <=",
        "test_verification.py::test_a_clock_that_steps_back_ends_hits_until_the_next_verification",
    ),
    Sabotage(
        "bounded hit: the verification of any database counts",
        "freshness/journal.lua",
        "return '|verified:' .. (database or '') end",
        "return '|verified:' end",
        "test_verification.py::test_the_verification_of_one_database_allows_no_hit_of_another",
    ),
    Sabotage(
        "instant before select: the time of the end is recorded",
        "freshness/journal.lua",
        "call('ZADD', journal, '-' .. instant, verified_field(database))",
        "call('ZADD', journal, text(-clock()), verified_field(database))",
        "test_verification.py::test_a_write_after_the_select_of_a_verification_is_not_counted_as_verified",
    ),
    Sabotage(
        "row in transaction: the row is written after COMMIT",
        "freshness/connection.py",
        "                outbox.write(self, tags)\n",
        "                self.run_on_commit.append((set(), lambda: outbox.write(self, tags), True))\n",
        "test_verification.py::test_a_write_without_redis_is_not_lost_if_its_writer_is_killed_after_its_commit",
    ),
    Sabotage(
        "close before delete: rows are deleted first",
        "freshness/watchman.py",
        "    rows = outbox.read(connection)\n",
        "    rows = outbox.read(connection); outbox.delete(connection, rows)\n",
        "test_verification.py::test_a_watchman_that_dies_before_it_closes_deletes_nothing",
    ),
    Sabotage(
        "delete what was seen: every row is deleted",
        "freshness/outbox.py",
        "WHERE id IN ({', '.join(str(int(row)) for row, _ in rows)})",
        "",
        "test_verification.py::test_the_row_of_a_write_that_was_committed_after_the_select_is_kept",
    ),
    Sabotage(
        "same epoch: a verification counts in another journal",
        "freshness/journal.lua",
        "if j.epoch ~= tonumber(epoch) then return '0' end",
        "",
        "test_verification.py::test_a_verification_of_a_lost_journal_counts_for_nothing",
    ),
    Sabotage(
        "another database may have been verified",
        "freshness/watchman.py",
        "if connection.identity != database or not journal",
        "if not journal",
        "test_verification.py::test_a_verification_whose_database_was_replaced_counts_for_nothing",
    ),
    Sabotage(
        "a verification may read an old snapshot",
        "freshness/watchman.py",
        "if verification is None or connection.reads_the_past:",
        "if verification is None:",
        "test_verification.py::test_a_verification_in_an_open_transaction_counts_for_nothing",
    ),
    Sabotage(
        "rows beyond the limit are forgotten",
        "freshness/outbox.py",
        "{EVERYTHING} if len(rows) == LIMIT or EVERYTHING in found",
        "{EVERYTHING} if EVERYTHING in found",
        "test_verification.py::test_more_rows_than_are_read_at_once_make_every_entry_stale",
    ),
    Sabotage(
        "the tag of everything is one among others",
        "freshness/outbox.py",
        "len(rows) == LIMIT or EVERYTHING in found",
        "len(rows) == LIMIT",
        "test_verification.py::test_the_tag_of_everything_makes_every_entry_stale",
    ),
    Sabotage(
        "each watchman verifies whenever it looks",
        "freshness/journal.lua",
        "if begun and math.abs(now + begun) < MAX_STALENESS / 3 then return {} end",
        "",
        "test_verification.py::test_all_watchmen_together_cost_at_most_four_queries_in_each_bound",
    ),
    Sabotage(
        "a verification that found rows does not postpone the next",
        "freshness/journal.lua",
        "if tags ~= '' then call('ZADD', journal, text(-instant - MAX_STALENESS / 3), begun_field(database)) end",
        "",
        "test_verification.py::test_all_watchmen_together_cost_at_most_four_queries_in_each_bound",
    ),
    Sabotage(
        "a write without a lease is committed without a row",
        "freshness/connection.py",
        "                outbox.write(self, tags)\n",
        "                pass\n",
        "test_verification.py::test_a_write_without_redis_is_in_the_reads_after_the_next_verification",
    ),
    Sabotage(
        "a write that can be recorded nowhere is committed",
        "freshness/connection.py",
        '                why = " ".join(str(error).split())\n',
        '                why = " ".join(str(error).split()); return None\n',
        "test_verification.py::test_a_write_with_neither_redis_nor_outbox_is_refused_before_it_is_committed",
    ),
    Sabotage(
        "each reader starts a thread",
        "freshness/watchman.py",
        "            if self.thread is None:\n",
        "            if True:\n",
        "test_verification.py::test_the_first_read_starts_one_thread_and_waits_for_its_first_verification",
    ),
    Sabotage(
        "the watchman dies of its first error",
        "freshness/watchman.py",
        "            self._report(alias, error)\n",
        "            raise\n",
        "test_verification.py::test_a_watchman_survives_every_error",
    ),
    Sabotage(
        "the watchman logs each failure",
        "freshness/watchman.py",
        "if now - logged >= REMINDER:",
        "if True:",
        "test_verification.py::test_a_watchman_says_once_that_it_fails_and_once_that_it_is_back",
    ),
)

# The journal: each of its defences by name, and the rest of the comparison.

JOURNAL = (
    Sabotage(
        "read_at: an entry gets the instant of its store, not of its miss",
        "freshness/journal.lua",
        "local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "read_at = text(tick('1').last) local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "test_races.py::test_a_read_that_a_write_raced_is_repeated_before_it_is_stored",
    ),
    Sabotage(
        "lease: no lease is opened before COMMIT",
        "freshness/connection.py",
        "return journal.lease(tags)",
        'return Lease("none", tuple(tags))',
        "test_races.py::test_a_read_between_commit_and_close_returns_the_new_price",
    ),
    Sabotage(
        "lease: a lease ends at once",
        "freshness/journal.lua",
        "text(LEASES + j.last + LEASE), {lease",
        "text(LEASES + j.last), {lease",
        "test_races.py::test_a_read_between_commit_and_close_returns_the_new_price",
    ),
    Sabotage(
        "lease: a lease is opened after COMMIT",
        "freshness/connection.py",
        "return journal.lease(tags)",
        "super()._commit(); return journal.lease(tags)",
        "test_races.py::test_a_read_between_commit_and_close_returns_the_new_price",
    ),
    Sabotage(
        "lease: entries are trusted while a lease is open",
        "freshness/journal.lua",
        "if mine[tag] then return 'leased' end",
        "",
        "test_journal.py::test_a_write_is_not_missed_if_its_writer_is_killed_between_commit_and_close",
    ),
    Sabotage(
        "lease: any open lease makes every entry doubtful",
        "freshness/journal.lua",
        "if mine[tag] then return 'leased' end",
        "do return 'leased' end",
        "test_races.py::test_an_entry_that_a_write_does_not_touch_stays_warm_while_it_commits",
    ),
    Sabotage(
        "lease: an expired lease leaves no record",
        "freshness/journal.lua",
        "for first = 1, #tags, MANY do call('ZADD', journal, 'GT', scored({}, text(expiry), tags, first)) end",
        "",
        "test_journal.py::test_a_read_under_a_lease_is_not_stored_after_the_lease_has_run_out",
    ),
    Sabotage(
        "lease: an expired lease is never removed",
        "freshness/journal.lua",
        "call('ZREM', journal, over[i])",
        "",
        "test_journal.py::test_the_journal_keeps_only_what_was_written_within_a_ttl",
    ),
    Sabotage(
        "closed record: a close leaves no record",
        "freshness/journal.lua",
        "record(j, text(j.last), split(tags))\n  call('ZREM'",
        "record(j)\n  call('ZREM'",
        "test_races.py::test_a_read_that_a_write_raced_is_repeated_before_it_is_stored",
    ),
    Sabotage(
        "closed record: any record makes every entry doubtful",
        "freshness/journal.lua",
        "if closed and tonumber(closed) >= read_at then",
        "if #written > 0 then",
        "test_races.py::test_a_write_to_another_row_does_not_race_a_read",
    ),
    Sabotage(
        "closed record: a record is dropped at once",
        "freshness/journal.lua",
        "if j.last - TTL > j.low + 500000 then",
        "call('ZREMRANGEBYSCORE', journal, 1, text(j.last)) if false then",
        "test_races.py::test_a_read_that_a_write_raced_is_repeated_before_it_is_stored",
    ),
    Sabotage(
        "own lease only: a close ends every lease",
        "freshness/journal.lua",
        "call('ZREM', journal, lease .. '|' .. tags)\n  settle",
        "call('ZREMRANGEBYSCORE', journal, text(LEASES), '+inf')\n  settle",
        "test_races.py::test_a_close_does_not_end_the_lease_of_another_writer",
    ),
    Sabotage(
        "own lease only: all leases share one name",
        "freshness/journal.py",
        "Lease(os.urandom(8).hex(), ",
        'Lease("lease", ',
        "test_races.py::test_a_close_ends_only_one_of_two_leases_on_the_same_tags",
    ),
    Sabotage(
        "epoch: the epochs are not compared",
        "freshness/journal.lua",
        "if epoch ~= j.epoch or read_at <= j.low",
        "if read_at <= j.low",
        "test_journal.py::test_an_entry_of_a_lost_journal_is_not_trusted_even_if_the_clock_steps_back",
    ),
    Sabotage(
        "epoch: every journal has the same epoch",
        "freshness/journal.py",
        "str(int.from_bytes(os.urandom(6)) + 1)",
        '"1"',
        "test_journal.py::test_an_entry_of_a_lost_journal_is_not_trusted_even_if_the_clock_steps_back",
    ),
    Sabotage(
        "quarantine: a new journal begins without a lease on everything",
        "freshness/journal.lua",
        "if not quiet then",
        "if false then",
        "test_journal.py::test_no_read_is_stored_after_the_journal_is_lost_during_a_write",
    ),
    Sabotage(
        "quarantine: the lease on everything covers nothing",
        "freshness/journal.lua",
        "if tag == '*' then return 'recovering' end",
        "",
        "test_journal.py::test_no_read_is_stored_after_the_journal_is_lost_during_a_write",
    ),
    Sabotage(
        "quarantine: when it is over, it leaves no low-water mark",
        "freshness/journal.lua",
        "call('ZADD', journal, text(-expiry), '|low')",
        "",
        "test_journal.py::test_a_read_at_the_instant_at_which_a_lease_runs_out_is_not_stored",
    ),
    Sabotage(
        "low water: entries older than the mark are trusted",
        "freshness/journal.lua",
        "or read_at <= j.low then",
        "then",
        "test_journal.py::test_a_read_from_before_the_oldest_kept_record_is_not_stored",
    ),
    Sabotage(
        "low water: the mark does not rise when records are dropped",
        "freshness/journal.lua",
        "call('ZADD', journal, text(TTL - j.last), '|low')",
        "",
        "test_journal.py::test_a_read_from_before_the_oldest_kept_record_is_not_stored",
    ),
    Sabotage(
        "low water: records below the mark are never dropped",
        "freshness/journal.lua",
        "call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL))",
        "",
        "test_journal.py::test_a_read_from_before_the_oldest_kept_record_is_not_stored",
    ),
    Sabotage(
        "run id: the journal does not contain it",
        "freshness/journal.lua",
        "'|run:@RUN@'",
        "'|run:'",
        "test_journal.py::test_a_server_that_restarts_with_its_data_begins_cold",
    ),
    Sabotage(
        "run id: it is read only once, so no restart is noticed",
        "freshness/journal.py",
        '.replace("@RUN@", run)',
        '.replace("@RUN@", "a")',
        "test_journal.py::test_a_server_that_restarts_with_its_data_begins_cold",
    ),
    Sabotage(
        "run id: the script is loaded on another server than the one that was checked",
        "freshness/journal.py",
        'connection.send_command("SCRIPT", "LOAD", text)',
        'connection = client.connection_pool.get_connection(); connection.send_command("SCRIPT", "LOAD", text)',
        "test_journal.py::test_a_restart_between_info_and_script_load_is_noticed",
    ),
    Sabotage(
        "monotonic instants: the server's clock is used as it is",
        "freshness/journal.lua",
        "math.max(now, j.last + 1)",
        "now",
        "test_journal.py::test_a_write_is_not_missed_if_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "monotonic instants: two instants may be equal",
        "freshness/journal.lua",
        "math.max(now, j.last + 1)",
        "math.max(now, j.last)",
        "test_journal.py::test_two_events_in_the_same_microsecond_have_different_instants",
    ),
    Sabotage(
        "monotonic instants: the last instant is not stored",
        "freshness/journal.lua",
        "call('ZADD', journal, scored({text(-j.last), '|last'}, score, members, 1))",
        "if score then call('ZADD', journal, scored({}, score, members, 1)) end",
        "test_journal.py::test_a_write_is_not_missed_if_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "monotonic instants: a journal survives a clock that is far behind it",
        "freshness/journal.lua",
        "if not j or j.last > now + LEASE then",
        "if not j then",
        "test_journal.py::test_a_clock_that_steps_back_by_more_than_a_lease_begins_a_new_journal",
    ),
    Sabotage(
        "monotonic instants: a clock that is slightly behind ends the journal",
        "freshness/journal.lua",
        "if not j or j.last > now + LEASE then",
        "if not j or j.last > now then",
        "test_journal.py::test_a_write_is_not_missed_if_the_clock_steps_back_a_little",
    ),
    Sabotage(
        "ties: a lease that ends at the same instant is over",
        "freshness/journal.lua",
        "journal, text(LEASES + read_at), '+inf')",
        "journal, '(' .. text(LEASES + read_at), '+inf')",
        "test_journal.py::test_a_read_at_the_instant_at_which_a_lease_runs_out_is_not_stored",
    ),
    Sabotage(
        "ties: a close at the same instant came before the read",
        "freshness/journal.lua",
        "if closed and tonumber(closed) >= read_at then",
        "if closed and tonumber(closed) > read_at then",
        "test_journal.py::test_a_read_at_the_instant_at_which_a_lease_runs_out_is_not_stored[a lease]",
    ),
    Sabotage(
        "ties: a low-water mark at the same instant is below the read",
        "freshness/journal.lua",
        "or read_at <= j.low then",
        "or read_at < j.low then",
        "test_journal.py::test_a_read_at_the_instant_at_which_a_lease_runs_out_is_not_stored[a recovering lease]",
    ),
    Sabotage(
        "instants lose digits in tostring()",
        "freshness/journal.lua",
        "string.format('%.0f', instant)",
        "tostring(instant)",
        "test_journal.py::test_two_events_in_the_same_microsecond_have_different_instants",
    ),
)

# A script that fails half way, and servers that cannot keep the promise.

SERVERS = (
    Sabotage(
        "half way: a close removes its lease before it records",
        "freshness/journal.lua",
        "  record(j, text(j.last), split(tags))\n  call('ZREM', journal, lease .. '|' .. tags)",
        "  call('ZREM', journal, lease .. '|' .. tags)\n  record(j, text(j.last), split(tags))",
        "test_scripts.py::test_a_script_that_fails_at_any_command_never_makes_an_old_value_a_hit[a lease is open-close]",
    ),
    Sabotage(
        "half way: an expired lease is removed before it is recorded",
        "freshness/journal.lua",
        "over[i]:match('|(.*)$')\n",
        "over[i]:match('|(.*)$')\n    call('ZREM', journal, over[i])\n",
        "test_scripts.py::test_a_script_that_fails_at_any_command_never_makes_an_old_value_a_hit[a lease ran out-lookup]",
    ),
    Sabotage(
        "half way: a new journal gets its lease on everything in a second command",
        "freshness/journal.lua",
        "  call('ZADD', journal, unpack(fields))",
        "  call('ZADD', journal, unpack(fields, 1, 8)) if not quiet then call('ZADD', journal, unpack(fields, 9)) end",
        "test_scripts.py::test_a_script_that_fails_at_any_command_ends_no_lease[lookup-the journal was lost]",
    ),
    Sabotage(
        "half way: a store writes bytes and tags in two commands",
        "freshness/journal.lua",
        "call('HSET', entry, unpack(fields))",
        "if fields[7] then call('HSET', entry, unpack(fields, 7)) end call('HSET', entry, unpack(fields, 1, 6))",
        "test_scripts.py::test_a_store_that_fails_never_leaves_new_bytes_with_old_tags",
    ),
    Sabotage(
        "half way: records are dropped before the low-water mark rises",
        "freshness/journal.lua",
        "    call('ZADD', journal, text(TTL - j.last), '|low')\n",
        "    call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL)) call('ZADD', journal, text(TTL - j.last), '|low')\n",
        "test_scripts.py::test_a_close_that_fails_drops_no_record_that_is_still_needed",
    ),
    Sabotage(
        "many tags: all tags are put on Lua's stack at once",
        "freshness/journal.lua",
        "local MANY = 1000",
        "local MANY = 100000",
        "test_scripts.py::test_a_transaction_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: a close records only the first thousand",
        "freshness/journal.lua",
        "for first = MANY + 1, #members, MANY do",
        "for first = 1, 0 do",
        "test_scripts.py::test_a_transaction_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: an expired lease records only the first thousand",
        "freshness/journal.lua",
        "for first = 1, #tags, MANY do call('ZADD'",
        "for first = 1, 1 do call('ZADD'",
        "test_scripts.py::test_a_lease_that_ran_out_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: only the first thousand of an entry are compared with the closes",
        "freshness/journal.lua",
        "for first = 1, #tags, MANY do\n",
        "for first = 1, 1 do\n",
        "test_scripts.py::test_an_entry_may_have_any_number_of_tags",
    ),
    Sabotage(
        "many tags: only the first thousand of an entry are compared with the leases",
        "freshness/journal.lua",
        "mine[tags[first + i - 1]] = true",
        "mine[tags[i]] = true",
        "test_scripts.py::test_an_entry_may_have_any_number_of_tags",
    ),
    Sabotage(
        "the script gets an empty key",
        "freshness/journal.py",
        ', entry) if entry else (1, caches[conf.CACHE].make_key("journal"))',  # plain-words: code
        ", entry)",
        "test_scripts.py::test_a_verb_passes_only_keys_of_the_cache",
    ),
    Sabotage(
        "servers: INFO is not checked",
        "freshness/journal.py",
        "if why := objection(info):",
        "if why := None:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use",
    ),
    Sabotage(
        "servers: Redis 6.2 is accepted",
        "freshness/servers.py",
        '"Redis": (7, 0)',
        '"Redis": (6, 2)',
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[Redis 6.2]",
    ),
    Sabotage(
        "servers: Valkey is judged by the Redis version that it reports",
        "freshness/servers.py",
        "info.get(f'{name.lower()}_version', '')",
        "info.get('redis_version', '')",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[an older Valkey]",
    ),
    Sabotage(
        "servers: a server without a run_id is accepted",
        "freshness/servers.py",
        'if not info.get("run_id") or not version:',
        "if not version:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[no run_id]",
    ),
    Sabotage(
        "servers: a Redis cluster is accepted",
        "freshness/servers.py",
        'info.get("redis_mode"), ',
        "",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a cluster]",
    ),
    Sabotage(
        "servers: a Valkey cluster is accepted",
        "freshness/servers.py",
        ', info.get("server_mode"))',
        ",)",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a cluster of Valkey]",
    ),
    Sabotage(
        "servers: a replica is accepted",
        "freshness/servers.py",
        'elif info.get("role") == "slave":',
        "elif False:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[a replica]",
    ),
    Sabotage(
        "servers: a server without INFO counts as unreachable",
        "freshness/journal.py",
        'if "unknown command" not in str(error):',
        "if True:",
        "test_servers.py::test_a_server_that_cannot_keep_the_promise_is_refused_at_first_use[no INFO]",
    ),
    Sabotage(
        "servers: permissions are not checked",
        "freshness/journal.py",
        "if info and (forbidden := connection.read_response()):",
        "if info and (forbidden := connection.read_response() and []):",
        "test_servers.py::test_a_user_who_may_not_run_the_script_is_refused_with_the_rules_to_set",
    ),
    Sabotage(
        "servers: the required ACL rules lack a command of the script",
        "freshness/servers.py",
        '"zrem", ',
        "",
        "test_servers.py::test_the_listed_commands_for_an_acl_are_those_that_the_script_runs_and_those_that_the_service_sends",
    ),
    Sabotage(
        "servers: the message does not name the missing permission",
        "freshness/journal.py",
        ' or "ACL failure" in str(error)',
        "",
        "test_servers.py::test_a_permission_that_is_revoked_later_is_refused_with_the_rules_to_set[of a command]",
    ),
    Sabotage(
        "servers: after an error the server is assumed to be the same one",
        "freshness/journal.py",
        "            self._sha = None\n            self._line.disconnect()",
        "            self._line.disconnect()",
        "test_servers.py::test_a_primary_that_becomes_a_replica_is_refused_after_the_first_error",
    ),
    Sabotage(
        "servers: after a lost connection the server is assumed to be the same one",
        "freshness/journal.py",
        "                self._sha = None\n",
        "",
        "test_servers.py::test_a_server_behind_a_new_connection_is_checked_again",
    ),
    Sabotage(
        "servers: a refused server is checked again at every read",
        "freshness/journal.py",
        "if self._refused and monotonic() < self._refused[0]:",
        "if False:",
        "test_servers.py::test_a_replica_that_is_promoted_is_used_without_restarting_the_service",
    ),
    Sabotage(
        "servers: a refused server is never checked again",
        "freshness/journal.py",
        "if self._refused and monotonic() < self._refused[0]:",
        "if self._refused:",
        "test_servers.py::test_a_replica_that_is_promoted_is_used_without_restarting_the_service",
    ),
    Sabotage(
        "servers: check --deploy does not report a refused server",
        "freshness/checks.py",
        "return [checks.Error(refused.reason, hint=refused.remedy",
        "return [] and [checks.Error(refused.reason, hint=refused.remedy",
        "test_servers.py::test_check_deploy_refuses_a_server_that_cannot_keep_the_promise",
    ),
    Sabotage(
        "servers: /health/ does not report a refused server",
        "views.py",
        '        state["cache"] = f"refused: {refused}"',
        "        refused",
        "test_servers.py::test_the_health_endpoint_says_why_a_server_is_refused",
    ),
    Sabotage(
        "a thread keeps using the connection that it has returned to the pool",
        "freshness/journal.py",
        "        self.pool = self.connection = None",
        "        pass",
        "test_servers.py::test_a_thread_that_gets_no_connection_does_not_keep_the_one_that_it_returned",
    ),
)

# The tags of a write, and the dependencies of a response. Both are taken from the query.

TAGS = (
    Sabotage(
        "a response does not depend on the rows that it shows",
        "freshness/dependencies.py",
        'rows.append((position, f"{table.name}:", table.pk_text))',
        "pass",
        "test_precision.py::test_each_write_invalidates_exactly_the_pages_that_the_table_lists[Office.name to Office deleted]",
    ),
    Sabotage(
        "a response does not depend on the columns that select it",
        "freshness/dependencies.py",
        'self.tags |= {f"{table.name}.{column}" for column in columns}',
        "pass",
        "test_invalidation.py::test_a_row_enters_and_leaves_a_filtered_page[status-sold-status=sold]",
    ),
    Sabotage(
        "a response does not depend on which rows exist",
        "freshness/dependencies.py",
        'self.tags.add(f"{table.name}:+")',
        "pass",
        "test_invalidation.py::test_a_created_property_is_first_in_the_next_read",
    ),
    Sabotage(
        "a response does not depend on a row that was read but is not shown",
        "freshness/dependencies.py",
        "if read is not None and read > len(shown):",
        "if False:",
        "test_invalidation.py::test_a_page_loses_its_next_link_when_the_row_after_it_is_deleted",
    ),
    Sabotage(
        "a response does not depend on writes whose rows are unknown",
        "freshness/dependencies.py",
        'self.tags.add(f"{table.name}:*")',
        "pass",
        "test_writes.py::test_every_way_to_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "a response does not depend on the rows that refer to what it shows",
        "freshness/dependencies.py",
        "self.tags |= self.scopes[alias]",
        "pass",
        "test_precision.py::test_each_write_invalidates_exactly_the_pages_that_the_table_lists[PropertyImage.property to PropertyImage deleted]",
    ),
    Sabotage(
        "a response does not depend on the foreign key of a join in its filter",
        "freshness/dependencies.py",
        "self.selecting[parent].update(left for left, _ in join.join_cols)",
        "pass",
        "test_invalidation.py::test_a_property_moved_to_another_agent_is_in_the_next_read_of_both_agents",
    ),
    Sabotage(
        "an UPDATE does not tag the columns that it writes",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{field.column}")',
        "pass",
        "test_invalidation.py::test_a_new_price_moves_a_row_to_another_page[price-19-1]",
    ),
    Sabotage(
        "an UPDATE does not tag the row that it writes",
        "freshness/compiler.py",
        'tags = {table.name, *(f"{table.name}:{key}" for key in keys)}',
        "tags = {table.name}",
        "test_precision.py::test_each_write_invalidates_exactly_the_pages_that_the_table_lists[Office.name to Office deleted]",
    ),
    Sabotage(
        "an UPDATE does not tag the row that its row refers to now",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{field.column}={text(_prepared(field, value))}")',
        "pass",
        "test_invalidation.py::test_a_moved_image_leaves_the_page_of_its_old_property",
    ),
    Sabotage(
        "an UPDATE to a value that only the database knows tags nothing",
        "freshness/compiler.py",
        "                if not is_known:",
        "                if False:",
        "test_saves.py::test_an_image_whose_property_id_is_an_expression_is_in_the_next_read",
    ),
    Sabotage(
        "an INSERT does not tag the table's set of rows",
        "freshness/compiler.py",
        'tags = {table.name, f"{table.name}:+"}',
        "tags = {table.name}",
        "test_invalidation.py::test_a_created_property_is_first_in_the_next_read",
    ),
    Sabotage(
        "an INSERT does not tag the row that its row refers to",
        "freshness/compiler.py",
        'tags.add(f"{table.name}.{column}={text(_prepared(written[column], value))}")',
        "pass",
        "test_precision.py::test_each_write_invalidates_exactly_the_pages_that_the_table_lists[PropertyImage.property to PropertyImage deleted]",
    ),
    Sabotage(
        "an upsert is tagged like an INSERT",
        "freshness/compiler.py",
        "if self.query.on_conflict == OnConflict.UPDATE:",
        "if False:",
        "test_writes.py::test_an_upsert_is_in_the_next_read_of_the_row_that_it_updates",
    ),
    Sabotage(
        "a DELETE does not tag the rows that it deletes",
        "freshness/compiler.py",
        'tags.update(f"{table.name}:{table.pk_text(value)}" for value in values)',
        "pass",
        "test_invalidation.py::test_a_deleted_property_is_gone_from_the_next_read[with images]",
    ),
    Sabotage(
        "a DELETE does not tag the table's set of rows",
        "freshness/compiler.py",
        'tags = {table.name, f"{table.name}:-"}',
        "tags = {table.name}",
        "test_invalidation.py::test_a_page_loses_its_next_link_when_the_row_after_it_is_deleted",
    ),
    Sabotage(
        "an unlocked save tags only the columns that differ",
        "freshness/connection.py",
        "return self.managed and self.begun",
        "return True",
        "test_saves.py::test_a_select_for_update_before_the_driver_begins_a_transaction_is_no_lock",
    ),
    Sabotage(
        "a lock outlives the rollback of its savepoint",
        "freshness/connection.py",
        "self.scopes, cut = self.scopes[:at], self.scopes[at:]",
        "self.scopes, cut = self.scopes[:at], self.scopes[at:]; self.scopes[-1].held |= cut[0].held",
        "test_commit.py::test_a_lock_taken_under_a_savepoint_ends_with_a_rollback_to_it",
    ),
    Sabotage(
        "a lock of a joined row counts as a lock of the row itself",
        "freshness/compiler.py",
        '(of and "self" not in of)',
        "False",
        "test_saves.py::test_a_lock_on_a_joined_row_is_no_lock_on_the_row_itself",
    ),
    Sabotage(
        "a lock of one row counts for every row",
        "freshness/connection.py",
        "held[table.name, table.pk_text(key)] = values",
        "[held.__setitem__((table.name, str(each)), values) for each in range(10_000)]",
        "test_saves.py::test_a_lock_does_not_follow_an_object_to_another_id",
    ),
    Sabotage(
        "a response does not depend on the column that it groups by",
        "freshness/dependencies.py",
        'self._walk(each if hasattr(each, "as_sql") else self.query.resolve_ref(each))',  # plain-words: code
        "pass",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[GROUP BY a column that is not shown]",
    ),
    Sabotage(
        "a response does not depend on a column that it shows without its key",
        "freshness/dependencies.py",
        "columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)",
        "columns |= self.ordering[alias] | self._joined_by(alias)",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[values_list() without a primary key]",
    ),
    Sabotage(
        "a response does not depend on the foreign key of a row that it shows without its key",
        "freshness/dependencies.py",
        "columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)",
        "columns |= self.shown[alias] | self.ordering[alias]",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a join without a primary key]",
    ),
    Sabotage(
        "a response does not depend on the rows before its offset",
        "freshness/dependencies.py",
        "self.counts_others = bool(query.low_mark)",
        "self.counts_others = False",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a slice with an offset]",
    ),
    Sabotage(
        "a response does not depend on the rows that a window function counts",
        "freshness/dependencies.py",
        "self.counts_others = self.counts_others or isinstance(expression, Window)",
        "pass",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a window function]",
    ),
    Sabotage(
        "a row that moves to another owner does not invalidate the old owner",
        "freshness/dependencies.py",
        'leaving = {tag.partition("=")[0] for tag in self.scopes[alias]}',
        "leaving = set()",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a slice of related rows, one of which is moved away]",
    ),
    Sabotage(
        "a row that a query names by its key counts only if it is shown",
        "freshness/dependencies.py",
        "(self.tags if position is None or self.counts_others else hidden).update(leaving)",  # plain-words: code
        "alias in self.by_pk or (self.tags if position is None or self.counts_others else hidden).update(leaving)",  # plain-words: code
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a slice of rows by id, one of which is deleted]",
    ),
    Sabotage(
        "a response does not depend on the order of rows that it reads but does not show",
        "freshness/dependencies.py",
        'hidden |= {f"{table.name}.{column}" for column in self.ordering[alias]}',
        "pass",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[the first row shown of many that are read]",
    ),
    Sabotage(
        "a row that a query names by its key counts only if it is found",
        "freshness/dependencies.py",
        "found.add(pin.missing)",
        "pass",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[in_bulk()]",
    ),
    Sabotage(
        "a slice does not depend on the columns that order it",
        "freshness/dependencies.py",
        "if not (self.query.is_sliced or self.query.distinct_fields):",
        "if True:",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[an ordering]",
    ),
    Sabotage(
        "the condition of a FilteredRelation is ignored",
        "freshness/dependencies.py",
        "if filtered := join.filtered_relation:",
        "if False:",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a FilteredRelation]",
    ),
    Sabotage(
        "the content type of a generic relation is ignored",
        "freshness/dependencies.py",
        "if restriction := join.join_field.get_extra_restriction(alias, join.parent_alias):",
        "if False:",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a generic relation that gains a row of another one]",
    ),
    Sabotage(
        "a response does not depend on a reference from a joined row",
        "freshness/dependencies.py",
        "            if not forward:\n                self.selecting[alias].add(right)",
        "            if False:\n                self.selecting[alias].add(right)",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[the reverse of a one-to-one field, moved from another row]",
    ),
    Sabotage(
        "a subquery is ignored",
        "freshness/dependencies.py",
        "self.tags.add(self._table(join.table_name).name)",
        "self._table(join.table_name)",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a Subquery]",
    ),
    Sabotage(
        "the parts of a union() are ignored",
        "freshness/dependencies.py",
        "for combined in query.combined_queries:",
        "for combined in ():",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[union()]",
    ),
    Sabotage(
        "the inner query of an aggregate is ignored",
        "freshness/dependencies.py",
        'if isinstance(inner := getattr(query, "inner_query", None), Query):',
        "if False:",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[count() of a slice]",
    ),
    Sabotage(
        "a row that appears only in a join is tagged like a created row of the page",
        "freshness/dependencies.py",
        "implied = {alias for alias in self.joins if self._is_implied(alias)}",
        "implied = set()",
        "test_dependencies.py::test_a_new_row_of_a_joined_table_leaves_the_page_warm",
    ),
    Sabotage(
        "a foreign key without a database constraint counts as a guarantee that its row exists",
        "freshness/dependencies.py",
        'getattr(field, "db_constraint", False)',
        "True",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a foreign key without a constraint]",
    ),
    Sabotage(
        "rows are not told apart by the row that they refer to",
        "freshness/dependencies.py",
        "same.append((join.parent_alias, join.join_cols[0][0]))",
        "pass",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[values_list() of a joined row and its foreign key]",
    ),
    Sabotage(
        "a composite primary key counts as one column",
        "freshness/dependencies.py",
        "place += len(expression) if isinstance(expression, ColPairs) else 1",  # plain-words: code
        "place += 1",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a composite primary key]",
    ),
    Sabotage(
        "an unmanaged model is taken for a table, although it may be a view",
        "freshness/dependencies.py",
        "if not table.managed:",
        "if False:",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[an unmanaged model over a view]",
    ),
    Sabotage(
        "RawSQL() in a query is ignored",
        "freshness/dependencies.py",
        "if isinstance(expression, RawSQL | ExtraWhere):",
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[extra(where)]",
    ),
    Sabotage(
        "extra() is ignored",
        "freshness/dependencies.py",
        "if query.extra_tables or query.extra_order_by or any(",
        "if any(",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[extra(tables)]",
    ),
    Sabotage(
        "SQL in the template of a function is ignored",
        "freshness/dependencies.py",
        "if template and SELECT.search(template):",
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[a function whose template is a query]",
    ),
    Sabotage(
        "a function without arguments is ignored",
        "freshness/dependencies.py",
        "if not is_djangos and not function.source_expressions:",
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[a function without a column]",
    ),
    Sabotage(
        "Now() is ignored",
        "freshness/dependencies.py",
        'if type(expression).__name__ in ("Now", "TransactionNow"):',
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[Now()]",
    ),
    Sabotage(
        "the joins in the parts of a union() are ignored",
        "freshness/dependencies.py",
        "        if query.select_related:\n",
        "        if False:\n",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[a union() whose parts have select_related()]",
    ),
    Sabotage(
        "a model that is not tracked is ignored",
        "freshness/dependencies.py",
        'raise Unreadable(f"It reads {name}, which is not tracked. Add {label_of(name)} to FRESHNESS_MODELS.") from None',
        "return Table(name, name, None, None, {})",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[a model that is not tracked]",
    ),
    Sabotage(
        "a response that sent no query is stored",
        "freshness/dependencies.py",
        "if self.unreadable is None and not self.queries:",
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[no query]",
    ),
    Sabotage(
        "a SELECT through a cursor is ignored",
        "freshness/connection.py",
        "        elif not judged.tables:\n            self._read_as_text(sql)",
        "        elif not judged.tables:\n            pass",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[a cursor]",
    ),
    Sabotage(
        "a query to another database is ignored",
        "freshness/entries.py",
        "if not isinstance(connections[alias], ConnectionMixin):",
        "if False:",
        "test_dependencies.py::test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached[another database]",
    ),
    Sabotage(
        "a query that no row can match counts as no query",
        "freshness/compiler.py",
        "            recording.queries += 1\n            return result",
        "            return result",
        "test_dependencies.py::test_a_response_whose_query_can_match_no_row_is_cached",
    ),
    Sabotage(
        "the rows of iterator() are not recorded",
        "freshness/compiler.py",
        "        recording.note(reading, chunk)\n        yield chunk",
        "        yield chunk",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[iterator()]",
    ),
    Sabotage(
        "an UPDATE does not tag the generated columns",
        "freshness/compiler.py",
        '{f"{table.name}.{column}" for column in table.generated}',
        "set()",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a generated column]",
    ),
    Sabotage(
        "an UPDATE of a primary key tags only the old row",
        "freshness/compiler.py",
        "            if field.primary_key:\n                return self._say(table, (), table.all)",
        "",
        "test_dependencies.py::test_a_write_is_in_the_next_read_for_every_shape_of_query[a row by an id that another row takes]",
    ),
    Sabotage(
        "an INSERT tags no referenced row if the database fills in the foreign key",
        "freshness/compiler.py",
        '                if hasattr(value, "resolve_expression"):\n                    return self._say(table, (), table.all)',
        '                if hasattr(value, "resolve_expression"):\n                    continue',
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a foreign key with a db_default]",
    ),
    Sabotage(
        "a row that is created again with its old key counts as a new row",
        "freshness/compiler.py",
        'if self.connection.has_tagged(table.name, f"{table.name}:-") and',
        "if False and",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a row created again under the key of one deleted in the same transaction]",
    ),
    Sabotage(
        "a write through a database view tags only the view",
        "freshness/compiler.py",
        "is_table = table.managed if table else self",
        "is_table = table or self",
        "test_kinds.py::test_a_write_through_a_database_view_is_in_the_next_read",
    ),
    Sabotage(
        "raw SQL that writes a database view tags only the view",
        "freshness/statements.py",
        "return touched if all(tracking.tables()[table].managed for table in touched) else everything",  # plain-words: code
        "return touched",
        "test_kinds.py::test_a_write_through_a_database_view_is_in_the_next_read",
    ),
    Sabotage(
        "JSON's true and 1 count as equal values",
        "freshness/connection.py",
        "and not _differ_in_json(held[column], value)",
        "",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[JSON whose number becomes true]",
    ),
    Sabotage(
        "a UUID in another form has a different tag",
        "freshness/tracking.py",
        "return lambda value: str(value if isinstance(value, UUID) else UUID(str(value)))",  # plain-words: code
        "return str",
        "test_kinds.py::test_a_write_is_in_the_next_read_for_every_kind_of_model[a UUID primary key]",
    ),
    Sabotage(
        "the tables of many-to-many fields are not tracked",
        "freshness/tracking.py",
        "*(field.remote_field.through for field in opts.many_to_many)",
        "",
        "test_kinds.py::test_tracking_a_model_also_tracks_its_parents_and_many_to_many_tables",
    ),
    Sabotage(
        "the parents of a model are not tracked",
        "freshness/tracking.py",
        "*opts.get_parent_list(),",
        "",
        "test_kinds.py::test_tracking_a_model_also_tracks_its_parents_and_many_to_many_tables",
    ),
    Sabotage(
        "values that a collation makes equal have different tags",
        "freshness/tracking.py",
        ' and not getattr(field, "db_collation", None)',
        "",
        "test_kinds.py::test_values_that_a_database_may_treat_as_equal_are_never_compared_as_text",
    ),
    Sabotage(
        "two models of one table use the references of the first one",
        "freshness/tracking.py",
        "references = {column: made for column, made in one.references.items() if column in other.references}",
        "references = one.references",
        "test_kinds.py::test_two_models_of_one_table_are_tracked_as_one",
    ),
)

# The commit: code that mutmut does not mutate, because it is decorated or not in a function.

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

# Which statements are writes, and how they can be sent.

SQL = (
    Sabotage(
        "an UPDATE is not a write",
        "freshness/statements.py",
        "SELECT | VALUES |",
        "SELECT | UPDATE | VALUES |",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "EXPLAIN ANALYZE is not a write",
        "freshness/statements.py",
        'return _tables_of_one(piece[explained.end() :], sql) if explained["analyze"] or RUNS.search(explained["options"]) else NOTHING',  # plain-words: code
        "return NOTHING",
        judged("explain analyze update HOUSING_AGENT set name = 'x'"),
    ),
    Sabotage(
        "EXPLAIN ANALYZE tags the tables that its text mentions",
        "freshness/statements.py",
        "return _tables_of_one(piece[explained.end() :], sql) if",
        "return _mentioned(sql) if",
        judged("EXPLAIN ANALYZE UPDATE legacy_view SET price = 1 WHERE id IN (SELECT id FROM housing_agent)"),
    ),
    Sabotage(
        "EXPLAIN with a comment is not a write, because it is not parsed",
        "freshness/statements.py",
        "    if not explained:\n        return frozenset(tracking.tables())",
        "    if not explained:\n        return NOTHING",
        "test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise",
    ),
    Sabotage(
        "EXPLAIN (ANALYZE false) is a write",
        "freshness/statements.py",
        r"\bANALY[SZ]E\b(?!\s+(?:false|off|0)\b)",
        r"\bANALY[SZ]E\b",
        judged("EXPLAIN (ANALYZE false) UPDATE housing_agent SET name = 'x'"),
    ),
    Sabotage(
        "a write to an unknown target tags nothing",
        "freshness/statements.py",
        "if HIDDEN.search(rest) or not all(names_of(target) in _known() for target in targets):\n        return everything",
        "if HIDDEN.search(rest) or not all(names_of(target) in _known() for target in targets):\n        return NOTHING",
        judged("UPDATE legacy_view SET price = 1"),
    ),
    Sabotage(
        "a write to an unknown target tags the tables that its text mentions",
        "freshness/statements.py",
        "not all(names_of(target) in _known() for target in targets):\n        return everything",
        "not all(names_of(target) in _known() for target in targets):\n        return _mentioned(sql)",
        judged("MERGE INTO legacy_view USING housing_agent a ON true WHEN MATCHED THEN DELETE"),
    ),
    Sabotage(
        "one known target of several is enough",
        "freshness/statements.py",
        "not all(names_of(target) in _known()",
        "not any(names_of(target) in _known()",
        judged("TRUNCATE legacy_table, housing_agent"),
    ),
    Sabotage(
        "a write inside a write is ignored",
        "freshness/statements.py",
        "if HIDDEN.search(rest) or not all",
        "if not all",
        judged("INSERT INTO django_session WITH x AS (DELETE FROM legacy_view RETURNING id) SELECT * FROM x"),
    ),
    Sabotage(
        "a CTE that writes is not a write",
        "freshness/statements.py",
        r"WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b)",
        r"WITH\b",
        judged("WITH x AS (DELETE FROM legacy_view RETURNING id) SELECT * FROM x, housing_agent"),
    ),
    Sabotage(
        "a CTE that reads is a write",
        "freshness/statements.py",
        " or READS_ONLY.match(sql[LEAD.match(sql).end() :])",
        "",
        judged("WITH x AS (SELECT id FROM housing_agent) SELECT * FROM x"),
    ),
    Sabotage(
        "CALL and other unknown statements tag the tables that their text mentions",
        "freshness/statements.py",
        "    else:\n        return everything\n    if HIDDEN",  # plain-words: code
        "    else:\n        return _mentioned(sql)\n    if HIDDEN",  # plain-words: code
        judged("CALL nightly('housing_agent')"),
    ),
    Sabotage(
        "several statements in one text tag the tables that it mentions",
        "freshness/statements.py",
        "return NOTHING if all(map(_is_harmless, pieces)) else frozenset(tracking.tables())",  # plain-words: code
        "return NOTHING if all(map(_is_harmless, pieces)) else _mentioned(sql)",  # plain-words: code
        judged("SELECT 1; CALL nightly('housing_agent')"),
    ),
    Sabotage(
        "several statements are harmless if one of them is",
        "freshness/statements.py",
        "if all(map(_is_harmless, pieces))",
        "if any(map(_is_harmless, pieces))",
        judged("SELECT 1; UPDATE housing_agent SET name = 'x'"),
    ),
    Sabotage(
        "TRUNCATE … CASCADE tags only the tables in its text",
        "freshness/statements.py",
        r"(?:RESTRICT)? \Z",
        r"(?:RESTRICT|CASCADE)? \Z",
        judged("TRUNCATE housing_office CASCADE"),
    ),
    Sabotage(
        "DROP … CASCADE tags only the tables in its text",
        "freshness/statements.py",
        "return everything if CASCADE.search(piece) or HIDDEN.search(piece) else _mentioned(sql)",  # plain-words: code
        "return _mentioned(sql)",
        judged("DROP TABLE mine CASCADE"),
    ),
    Sabotage(
        "ON DELETE CASCADE is taken for DROP … CASCADE",
        "freshness/statements.py",
        r"(?<!\bDELETE\s)(?<!\bUPDATE\s)",
        "",
        judged("CREATE TABLE mine (office_id integer REFERENCES elsewhere (id) ON DELETE CASCADE)"),
    ),
    Sabotage(
        "DROP SCHEMA tags only the names in its text",
        "freshness/statements.py",
        r"(?:ALTER|DROP)\s+(?:TABLE|",
        r"(?:ALTER|DROP)\s+(?:SCHEMA|TABLE|",
        judged("DROP SCHEMA public"),
    ),
    Sabotage(
        "a change of an enum's labels tags nothing",
        "freshness/statements.py",
        r"(?:ALTER|DROP)\s+(?:TABLE|",
        r"(?:ALTER|DROP)\s+(?:TYPE|TABLE|",
        judged("ALTER TYPE status RENAME VALUE 'sold' TO 'gone'"),
    ),
    Sabotage(
        "SELECT … INTO is not a write",
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
        "COPY … TO PROGRAM is not a write",
        "freshness/statements.py",
        r" (?!.*\bPROGRAM\b)",
        "",
        judged("COPY housing_agent TO PROGRAM 'nightly'"),
    ),
    Sabotage(
        "COPY … FROM tags another table than its target",
        "freshness/statements.py",
        " or IMPORT.match(piece)",
        "",
        judged("COPY housing_office (name, city) FROM STDIN"),
    ),
    Sabotage(
        "tables that a plain statement mentions beside its target are ignored",
        "freshness/statements.py",
        "everything & written.union(*cascaded) | _mentioned(sql)",
        "everything & written.union(*cascaded)",
        judged("UPDATE housing_office SET city = a.name FROM housing_agent a"),
    ),
    Sabotage(
        "a schema in a name is not recognized",
        "freshness/statements.py",
        r"{IDENTIFIER} (?: \s*+ \. \s*+ {IDENTIFIER} )*+ (?! \s*+ \. )",
        "{IDENTIFIER}",
        judged("UPDATE django_session . legacy_view SET price = 1"),
    ),
    Sabotage(
        "a name ends at its dot",
        "freshness/statements.py",
        r" (?! \s*+ \. )",
        "",
        judged("UPDATE django_session . [legacy view] SET price = 1"),
    ),
    Sabotage(
        "the case of an unquoted name matters",
        "freshness/statements.py",
        "plain.lower() for quoted",
        "plain for quoted",
        judged("explain analyze update HOUSING_AGENT set name = 'x'"),
    ),
    Sabotage(
        "the case of a quoted name does not matter",
        "freshness/statements.py",
        "quoted.replace('\"\"', '\"') if quoted",
        "quoted.replace('\"\"', '\"').lower() if quoted",
        "test_statements.py::test_a_statement_is_a_write_unless_its_text_says_otherwise",
    ),
    Sabotage(
        "rows that the database deletes by cascade are not tagged",
        "freshness/statements.py",
        "[tracking.cascades().get(table, NOTHING) for table in written if deletes]",
        "[]",
        "test_statements.py::test_a_deletion_invalidates_the_tables_that_the_database_cascades_to",
    ),
    Sabotage(
        "an INSERT tags what a DELETE would cascade to",
        "freshness/statements.py",
        "for table in written if deletes]",
        "for table in written]",
        "test_statements.py::test_a_deletion_invalidates_the_tables_that_the_database_cascades_to",
    ),
    Sabotage(
        "literals are parsed as SQL",
        "freshness/statements.py",
        "    blanked = TOKEN.sub(blank, sql)",
        "    blanked = sql",
        judged("SELECT 'a; DELETE FROM housing_agent'"),
    ),
    Sabotage(
        "a backslash in a literal escapes nothing",
        "freshness/statements.py",
        'if "\\\\" in sql or BRACKETED',
        "if BRACKETED",
        judged(r"SELECT E'\\'', E'; SELECT '; DELETE FROM legacy_view; --'"),
    ),
    Sabotage(
        "square brackets do not quote a name",
        "freshness/statements.py",
        'if "\\\\" in sql or BRACKETED.search(sql):',
        'if "\\\\" in sql:',
        judged("SELECT [it's]; DELETE FROM legacy_view; --'"),
    ),
    Sabotage(
        "a nested comment ends at its first */",
        "freshness/statements.py",
        "return sql if nested or UNSURE",
        "return sql if UNSURE",
        judged("/* /* */ DELETE FROM housing_agent; -- */ */ SELECT 1"),
    ),
    Sabotage(
        "a lone CR does not end a comment",
        "freshness/statements.py",
        r"--[^\n\r]*(?:\r?\n|\Z)",
        r"--[^\n]*(?:\n|\Z)",
        judged(r"-- x\rDELETE FROM housing_agent\nSELECT 1"),
    ),
    Sabotage(
        "the text after COMMIT is ignored",
        "freshness/statements.py",
        "alone = len(pieces) == 1 and not",
        "alone = not",
        "test_statements.py::test_a_commit_among_other_statements_is_refused_even_outside_a_transaction[COMMIT; DELETE FROM housing_property]",
    ),
    Sabotage(
        "COMMIT PREPARED is allowed",
        "freshness/statements.py",
        "len(pieces) == 1 and not COMMITS_ANOTHER.match(pieces[0])",
        "len(pieces) == 1",
        "test_statements.py::test_a_commit_among_other_statements_is_refused_even_outside_a_transaction[COMMIT PREPARED 'x']",
    ),
    Sabotage(
        "a COMMIT after another statement is not found",
        "freshness/statements.py",
        "for at, piece in enumerate(pieces) if",
        "for at, piece in enumerate(pieces[:1]) if",
        "test_statements.py::test_ending_a_transaction_with_sql_is_refused[SELECT 1; COMMIT]",
    ),
    Sabotage(
        "the END of a function's body counts as the end of the transaction",
        "freshness/statements.py",
        " and not (at and _is_end_of_body(found[1], pieces[0]))",
        "",
        "test_statements.py::test_a_keyword_inside_a_body_or_a_literal_ends_no_transaction",
    ),
    Sabotage(
        "ROLLBACK TO counts as the end of the transaction",
        "freshness/statements.py",
        r"ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b) |",
        "ROLLBACK |",
        "test_statements.py::test_a_savepoint_made_with_sql_is_allowed",
    ),
    Sabotage(
        "a judged text is never judged again, although the models may change",
        "freshness/statements.py",
        "_remembered = tracking.until_the_models_change(lru_cache(maxsize=1024)(_judge))",
        "_remembered = lru_cache(maxsize=1024)(_judge)",
        "test_statements.py::test_a_statement_is_judged_again_when_other_models_are_tracked",
    ),
    Sabotage(
        "long texts are memoized",
        "freshness/statements.py",
        "_remembered(sql) if len(sql) < LONG else _judge(sql)",  # plain-words: code
        "_remembered(sql)",
        "test_statements.py::test_a_statement_is_judged_once_unless_it_is_long",
    ),
    Sabotage(
        "the RELEASE of a savepoint outside a transaction commits",
        "freshness/sqlite3/base.py",
        "release_may_commit = True",
        "release_may_commit = False",
        "test_statements.py::test_releasing_a_savepoint_that_holds_a_write_is_refused_outside_of_atomic",
    ),
    Sabotage(
        "SQL given as bytes is ignored",
        "freshness/statements.py",
        'return sql.decode(errors="replace")',
        "return str(sql)",
        "test_sql.py::test_the_text_of_a_statement_is_what_psycopg_sends[bytes]",
    ),
    Sabotage(
        "a statement without a text is allowed",
        "freshness/statements.py",
        "if (text := connection.text_of(sql)) is None:",
        "if (text := connection.text_of(sql)) is Ellipsis:",
        "test_sql.py::test_a_statement_of_an_unknown_type_is_refused",
    ),
    Sabotage(
        "the text of a psycopg.sql object is its repr()",
        "freshness/postgresql/base.py",
        "composed.as_string(sql, self.connection) if isinstance(sql, STATEMENTS)",
        "str(sql) if isinstance(sql, STATEMENTS)",
        "test_sql.py::test_the_text_of_a_statement_is_what_psycopg_sends[Composed]",
    ),
    Sabotage(
        "copy() is not judged",
        "freshness/postgresql/base.py",
        "self.db.statement(text_of(statement, self.db)) as tables,",
        'self.db.statement("SELECT 1") as tables,',
        "test_sql.py::test_every_method_that_sends_sql_has_its_text_judged[PostgreSQL]",
    ),
    Sabotage(
        "stream() is not judged",
        "freshness/postgresql/base.py",
        "with self.db.statement(text) as tables,",
        'with self.db.statement("SELECT 1") as tables,',
        "test_sql.py::test_every_method_that_sends_sql_has_its_text_judged[PostgreSQL]",
    ),
    Sabotage(
        "an unknown method of the driver is allowed",
        "freshness/cursor.py",
        "if name not in self.sends_no_sql:",
        "if False:",
        "test_sql.py::test_a_new_method_of_a_driver_is_refused_until_it_is_reviewed",
    ),
    Sabotage(
        "hasattr() finds a refused method",
        "freshness/cursor.py",
        "class MethodRefused(NotSupportedError, AttributeError):",
        "class MethodRefused(NotSupportedError):",
        "test_sql.py::test_a_new_method_of_a_driver_is_refused_until_it_is_reviewed",
    ),
    Sabotage(
        "the list of harmless methods has one that sends SQL",
        "freshness/cursor.py",
        '"rowcount", "setinputsizes"',
        '"rowcount", "executescript", "setinputsizes"',
        "test_sql.py::test_no_allowed_method_takes_a_statement",
    ),
    Sabotage(
        "a cursor exposes the driver's connection",
        "freshness/cursor.py",
        '"rowcount", "setinputsizes"',
        '"rowcount", "connection", "setinputsizes"',
        "test_sql.py::test_a_cursor_does_not_expose_the_drivers_connection",
    ),
    Sabotage(
        "execute() returns the driver's own cursor",
        "freshness/cursor.py",
        "            self.written = before\n        return self if found is self.cursor else found",
        "            self.written = before\n        return found",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "executemany() returns the driver's own cursor",
        "freshness/cursor.py",
        "            found = super().executemany(sql, param_list)\n        return self if found is self.cursor else found",  # plain-words: code
        "            found = super().executemany(sql, param_list)\n        return found",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "an execute wrapper can change the text after it was judged",
        "freshness/cursor.py",
        "    if sql is judged:",
        "    if True:",
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "executemany() is not judged",
        "freshness/cursor.py",
        "            self.db.statement(text_of(sql, self.db)) as tables,\n",
        '            self.db.statement("SELECT 1") as tables,\n',
        "test_sql.py::test_every_way_to_send_a_write_is_in_the_next_read[in autocommit]",
    ),
    Sabotage(
        "callproc() is not judged",
        "freshness/cursor.py",
        'with self.db.statement("CALL procedure()"):',
        "if True:",
        "test_sql.py::test_a_write_by_a_procedure_is_in_the_next_read",
    ),
    Sabotage(
        "a copy of a connection marks the original's transaction as open",
        "freshness/connection.py",
        "        if held is not self:\n            connections[self.alias] = self\n        try:",
        "        try:",
        "test_sql.py::test_a_write_through_a_copy_of_the_connection_is_in_the_next_read",
    ),
    Sabotage(
        "a copy of a connection replaces the original",
        "freshness/connection.py",
        "                connections[self.alias] = held",
        "                pass",
        "test_sql.py::test_a_write_through_a_copy_of_the_connection_is_in_the_next_read",
    ),
    Sabotage(
        "executescript() is not judged",
        "freshness/sqlite3/base.py",
        " or may_write(script):",
        ":",
        "test_sql.py::test_a_script_that_may_write_a_tracked_table_is_refused",
    ),
    Sabotage(
        "executescript() inside a transaction is allowed",
        "freshness/sqlite3/base.py",
        "if self.db.managed or self.db.uncommitted or may_write(script):",
        "if may_write(script):",
        "test_sql.py::test_every_script_inside_a_transaction_is_refused",
    ),
    Sabotage(
        "the tables of many-to-many fields are taken for database views",
        "freshness/tracking.py",
        "{model._meta.db_table for model in apps.get_models(include_auto_created=True) if model._meta.managed}",
        "{model._meta.db_table for model in apps.get_models() if model._meta.managed}",
        judged("DELETE FROM auth_user_groups"),
    ),
)

# The rules of a read.

READ = (
    Sabotage(
        "a hit takes two round trips to Redis",
        "freshness/entries.py",
        "found := journal.lookup(key, etags, draw",
        "found := journal.lookup(key) and journal.lookup(key, etags, draw",
        "test_cost.py::test_a_hit_costs_one_round_trip",
    ),
    Sabotage(
        "a read on a dead connection is not retried",
        "freshness/journal.py",
        "except (refusals.NoScriptError, refusals.ConnectionError):",
        "except refusals.NoScriptError:",
        "test_hits.py::test_a_lookup_on_a_closed_connection_is_retried_once",
    ),
    Sabotage(
        "an unread reply is left on the connection for the next request",
        "freshness/journal.py",
        "            self.connection.disconnect()\n            raise\n",
        "            raise\n",
        "test_hits.py::test_an_interrupted_lookup_never_leaves_its_reply_to_the_next_one",
    ),
    Sabotage(
        "a forked process uses its parent's connection",
        "freshness/journal.py",
        " or self.process != os.getpid()",
        "",
        "test_hits.py::test_a_forked_process_opens_its_own_connection",
    ),
    Sabotage(
        "a thread that changes to another pool keeps the connection of the first one",
        "freshness/journal.py",
        "self.give_back()\n        self.pool",
        "self.pool",
        "test_hits.py::test_a_thread_that_changes_pools_returns_its_connection_to_the_first",
    ),
    Sabotage(
        "a thread keeps its connection when it ends",
        "freshness/journal.py",
        "finalize(threading.current_thread(), pool.release, self.connection)",
        "finalize(self, pool.release, self.connection)",
        "test_hits.py::test_a_thread_that_ends_returns_its_connection_to_the_pool",
    ),
    Sabotage(
        "the city and office filters do not use PostgreSQL's indexed columns",
        "filters.py",
        "    def as_postgresql(",
        "    def as_oracle(",
        "test_contract.py::test_a_filter_by_city_or_office_uses_the_column_that_postgresql_indexes",
    ),
    Sabotage(
        "`make run` exits when the code changes",
        "run.py",
        "CHANGED = 3",
        "CHANGED = None",
        "test_setup.py::test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache",
    ),
    Sabotage(
        "`make run` waits for a server that ignores SIGTERM",
        "run.py",
        "        server.kill()",
        "        server.terminate()",
        "test_setup.py::test_a_server_that_ignores_signals_is_killed",
    ),
    Sabotage(
        "rows with equal values have no order",
        "filters.py",
        'order_by(f"{sign}{column}", f"{sign}id")',
        'order_by(f"{sign}{column}")',
        "test_contract.py::test_a_cursor_pages_through_a_filtered_list_without_loss_or_repeat",
    ),
    Sabotage(
        "the last page of the remaining rows is taken for the first page",
        "filters.py",
        "if rows else Cursor(self.ordering, backward=True)",  # plain-words: code
        "if rows else Cursor(self.ordering, backward=False)",  # plain-words: code
        "test_contract.py::test_a_cursor_past_the_end_leads_back_to_the_last_page",
    ),
    Sabotage(
        "a page that `previous` leads to has no `next`",
        "filters.py",
        "following = cursor.after(rows[-1], backward=False, pick=pick) if rows else None",  # plain-words: code
        "following = None",
        "test_contract.py::test_previous_leads_back_to_the_same_page",
    ),
    Sabotage(
        "parsed parameters are memoized without their encoding",
        "filters.py",
        'request.META.get("QUERY_STRING", ""), request.encoding',
        'request.META.get("QUERY_STRING", ""), None',
        "test_contract.py::test_the_same_query_string_in_another_charset_has_other_values",
    ),
    Sabotage(
        "the fast serializer differs from DRF: it does not escape U+2028",
        "serializers.py",
        r'.replace(b"\xe2\x80\xa9", rb"\u2029")',
        "",
        "test_contract.py::test_line_separators_are_escaped_as_in_drf",
    ),
    Sabotage(
        "the fast serializer differs from DRF: it formats datetimes as Python does",
        "serializers.py",
        'f"{text[:-6]}Z"',
        "text",
        "test_contract.py::test_the_cached_variant_returns_the_same_bytes_as_the_serializer_of_drf_for_any_property",
    ),
    Sabotage(
        "a 304 transfers the body from Redis",
        "freshness/journal.lua",
        "if known == e[3] or known == '*' then",
        "if false then",
        "test_hits.py::test_a_known_etag_returns_304_without_a_body",
    ),
    Sabotage(
        "a lookup without a journal trusts the entry",
        "freshness/journal.lua",
        "not (j and e[1]) and 'missing' or doubt(",
        "not e[1] and 'missing' or j and doubt(",
        "test_journal.py::test_no_entry_is_trusted_after_a_writer_is_killed_and_the_journal_is_lost",
    ),
    Sabotage(
        "a miss reads the epoch in a round trip of its own",
        "freshness/entries.py",
        "verdict = journal.store(key, miss, recording.tags, etag_of(body), body, seconds, database)",
        "journal.lookup(key); verdict = journal.store(key, miss, recording.tags, etag_of(body), body, seconds, database)",
        "test_cost.py::test_a_miss_costs_two_round_trips",
    ),
    Sabotage(
        "a pickled response is stored",
        "freshness/entries.py",
        "verdict = journal.store(key, miss, recording.tags, etag_of(body), body, seconds, database)",
        'verdict = journal.store(key, miss, recording.tags, etag_of(body), __import__("pickle").dumps(body), seconds, database)',
        "test_hits.py::test_an_entry_holds_bytes_and_no_pickle",
    ),
    Sabotage(
        "a key does not contain the fingerprint",
        "freshness/keys.py",
        ":{shape}:",
        ":",
        "test_keys.py::test_a_deployment_with_another_fingerprint_finds_no_entry",
    ),
    Sabotage(
        "a read inside a transaction is stored",
        "freshness/entries.py",
        "if connection.reads_the_past:",
        "if False:",
        "test_hits.py::test_a_read_inside_a_transaction_is_not_cached",
    ),
    Sabotage(
        "ATOMIC_REQUESTS applies to the cached views",
        "freshness/views.py",
        "return transaction.non_atomic_requests(super().as_view(*args, **initkwargs))",
        "return super().as_view(*args, **initkwargs)",
        "test_hits.py::test_the_cached_variants_run_outside_atomic_requests",
    ),
    Sabotage(
        "a raced read is served without reading again",
        "freshness/entries.py",
        "ATTEMPTS = 3",
        "ATTEMPTS = 1",
        "test_races.py::test_a_read_that_a_write_raced_is_repeated_before_it_is_stored",
    ),
    Sabotage(
        "a raced read is repeated without a limit",
        "freshness/entries.py",
        "for attempt in range(ATTEMPTS):",
        "for attempt in iter(int, 1):",
        "test_races.py::test_a_reader_that_is_raced_every_time_responds_and_stores_nothing",
    ),
    Sabotage(
        "a raced response is stored",
        "freshness/journal.lua",
        "local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)",
        "local why",
        "test_races.py::test_a_read_that_a_write_raced_is_repeated_before_it_is_stored",
    ),
    Sabotage(
        "a slow reader overwrites a fast one",
        "freshness/journal.lua",
        "if not why and there[1] == epoch and tonumber(there[2]) > tonumber(read_at) then why = 'raced' end",
        "",
        "test_races.py::test_a_slow_reader_does_not_overwrite_a_newer_entry",
    ),
    Sabotage(
        "an entry never expires",
        "freshness/journal.lua",
        "call('PEXPIRE', entry, (why and LEASE or TTL) / 1000)",
        "",
        "test_hits.py::test_an_entry_expires_after_its_ttl",
    ),
    Sabotage(
        "a 404 is stored",
        "views.py",
        "home = get_object_or_404(",
        'if not queries.properties().filter(pk=self.kwargs["id"]): return b"null", {"properties"}\n                home = get_object_or_404(',
        "test_hits.py::test_a_404_is_never_cached",
    ),
    Sabotage(
        "the browsable page is not cached",
        "freshness/views.py",
        'if request.accepted_renderer.format == "api":',
        "if False:",
        "test_hits.py::test_a_browser_gets_a_page_that_shows_the_cached_bytes",
    ),
    Sabotage(
        "a key contains the query string as it was sent",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", request.META["QUERY_STRING"], read',
        "test_hits.py::test_equivalent_query_strings_share_an_entry",
    ),
    Sabotage(
        "a key leaves out the query parameters",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", "", read',
        "test_hits.py::test_every_parameter_has_its_own_entries",
    ),
    Sabotage(
        "a key leaves out the id of the property",
        "views.py",
        'return "detail", str(self.kwargs["id"]), read',
        'return "detail", "", read',
        "test_hits.py::test_every_property_has_its_own_entry",
    ),
    Sabotage(
        "a link contains the host",
        "views.py",
        "return rendered(page.body(",
        "object.__setattr__(page, 'next', request.build_absolute_uri(page.next)); return rendered(page.body(",
        "test_hits.py::test_the_response_does_not_depend_on_the_host",
    ),
    Sabotage(
        "the two SELECTs of a detail see two states of the database",
        "views.py",
        "with nullcontext() if ours().in_transaction else ours().snapshot():",  # plain-words: code
        "if True:",
        "test_races.py::test_a_detail_never_combines_two_states_of_the_database",
    ),
    Sabotage(
        "a page's SELECT is compiled for each request",
        "views.py",
        "@lru_cache(maxsize=KEPT)\ndef select_of(",
        "@lru_cache(maxsize=0)\ndef select_of(",
        "test_latency.py::test_a_request_makes_no_more_python_calls_than_recorded[a cold page-]",
    ),
    Sabotage(
        "a page's compiled SELECT keeps the rows of its first request",
        "freshness/dependencies.py",
        "    def rows(self, shown",
        "    @__import__('functools').cache\n    def rows(self, shown",
        "test_invalidation.py::test_a_saved_price_is_in_the_next_read",
    ),
    Sabotage(
        "a browser may reuse a response without revalidation",
        "freshness/views.py",
        '"Cache-Control": "no-cache"',
        '"Cache-Control": "max-age=60"',
        "test_hits.py::test_a_browser_must_revalidate_each_time",
    ),
)

# The parts of a key: the fingerprint, and the identity of the database.

KEYS = (
    Sabotage(
        "the fingerprint covers listed settings only",
        "freshness/fingerprint.py",
        "[code_in_force(), *settings_in_force()]",
        "[code_in_force()]",
        "test_keys.py::test_an_unknown_setting_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no code",
        "freshness/fingerprint.py",
        "[code_in_force(), *settings_in_force()]",
        "settings_in_force()",
        "test_keys.py::test_every_source_file_of_the_service_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint is not keyed with the secret key",
        "freshness/fingerprint.py",
        'salted_hmac("freshness.fingerprint", "\\n".join(',
        'salted_hmac("freshness.fingerprint", secret="none", value="\\n".join(',
        "test_keys.py::test_another_secret_key_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint covers no library",
        "freshness/fingerprint.py",
        "*distributions()]",
        "]",
        "test_keys.py::test_each_version_of_an_installed_library_changes_the_fingerprint",
    ),
    Sabotage(
        "the fingerprint does not cover the Python version",
        "freshness/fingerprint.py",
        "sys.version_info[:3]",
        "()",
        "test_keys.py::test_another_version_of_the_interpreter_changes_the_fingerprint",
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
        "the fingerprint covers apps only",
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
        "test_keys.py::test_the_source_of_a_library_is_not_hashed",
    ),
    Sabotage(
        "a project cannot exclude a setting from the fingerprint",
        "freshness/fingerprint.py",
        " | {*conf.IGNORED_SETTINGS}",
        "",
        "test_keys.py::test_a_project_can_ignore_settings_of_its_own",
    ),
    Sabotage(
        "a set has a different text in each process",
        "freshness/fingerprint.py",
        "{sorted(texts(value))}",
        "{texts(value)}",
        "test_keys.py::test_two_processes_compute_the_same_fingerprint",
    ),
    Sabotage(
        "a dict has a different text in each process",
        "freshness/fingerprint.py",
        "sorted(zip(",
        "list(zip(",
        "test_keys.py::test_two_processes_compute_the_same_fingerprint",
    ),
    Sabotage(
        "the state of an object does not count",
        "freshness/fingerprint.py",
        "{texts(list(part) if isinstance(part, Iterator) else part for part in parts)}",  # plain-words: code
        "",
        "test_keys.py::test_the_text_of_a_setting_distinguishes_different_values",
    ),
    Sabotage(
        "a setting that cannot be compared is ignored",
        "freshness/fingerprint.py",
        "_text_or(_secret_of_this_process, ",
        "_text_or(str, ",
        "test_keys.py::test_a_setting_that_cannot_be_compared_gives_each_process_its_own_fingerprint",
    ),
    Sabotage(
        "the code is read at the first request, not at the start",
        "freshness/apps.py",
        "fingerprint.code_in_force()",
        "",
        "test_keys.py::test_a_process_hashes_its_code_when_it_starts",
    ),
    Sabotage(
        "a changed setting does not change the fingerprint",
        "freshness/fingerprint.py",
        "fingerprint.cache_clear()",
        "pass",
        "test_keys.py::test_a_changed_setting_of_a_library_causes_a_miss",
    ),
    Sabotage(
        "a changed cache configuration does not change the keys",
        "freshness/keys.py",
        "_with_prefix.cache_clear()",
        "pass",
        "test_keys.py::test_a_cache_with_another_prefix_has_other_keys",
    ),
    Sabotage(
        "a key does not contain the database",
        "freshness/keys.py",
        ":{database}:",
        ":",
        "test_keys.py::test_another_database_at_the_same_address_causes_a_miss",
    ),
    Sabotage(
        "identity: a copy of a database file counts as the same database",
        "freshness/identity.py",
        "repr((place, facts))",
        "repr(facts)",
        "test_keys.py::test_a_copy_of_the_database_at_the_same_address_causes_a_miss",
    ),
    Sabotage(
        "identity: the database's id is ignored",
        "freshness/sqlite3/base.py",
        '"SELECT id, ',
        '"SELECT 1, ',
        "test_keys.py::test_another_id_in_the_database_changes_all_keys",
    ),
    Sabotage(
        "identity: a file that is restored in place counts as unchanged",
        "freshness/sqlite3/base.py",
        "(SELECT schema_version FROM pragma_schema_version)",
        "1",
        "test_keys.py::test_a_file_restored_from_a_backup_causes_a_miss",
    ),
    Sabotage(
        "identity: the file is not checked",
        "freshness/identity.py",
        "self.place() in (None, place)",
        "True",
        "test_keys.py::test_a_file_replaced_under_an_open_connection_is_opened_again",
    ),
    Sabotage(
        "identity: a hit opens the file",
        "freshness/identity.py",
        "self.place() in (None, place)",
        "self.place() == place",
        "test_keys.py::test_a_missing_file_leaves_warm_pages_warm",
    ),
    Sabotage(
        "identity: a file that was replaced while it was opened is accepted",
        "freshness/identity.py",
        "if place != self.place():",
        "if False:",
        "test_keys.py::test_a_file_replaced_while_it_is_opened_stores_nothing_under_the_old_key",
    ),
    Sabotage(
        "identity: a thread uses the identity of an old connection",
        "freshness/identity.py",
        " and (self.connection is None or self.identity == identity)",
        "",
        "test_keys.py::test_the_newest_connection_of_a_process_sets_the_identity_for_all_its_threads",
    ),
    Sabotage(
        "identity: a response that was read from a replaced file is stored",
        "freshness/entries.py",
        "if connection.identity != database:",
        "if False:",
        "test_keys.py::test_a_database_replaced_during_a_read_stores_nothing_under_the_old_key",
    ),
    Sabotage(
        "identity: a database without an id is cached",
        "freshness/identity.py",
        "if self.identity is None:",
        "if False:",
        "test_keys.py::test_a_database_without_an_identity_is_read_without_the_cache",
    ),
    Sabotage(
        "identity: the id is read for each response",
        "freshness/identity.py",
        "if identity and ",
        "if False and ",
        "test_keys.py::test_the_identity_is_read_once_for_each_connection_and_is_not_counted_as_a_query",
    ),
    Sabotage(
        "identity: every database has the same id",
        "freshness/migrations/0001_database.py",
        "create(id=uuid4())",
        'create(id="f3b1a8a1-ac0a-4a7f-8a5b-3b1f8a1c0a4a")',
        "test_keys.py::test_the_migration_gives_each_database_its_own_id",
    ),
    Sabotage(
        "identity: the first migration warns of itself",
        "freshness/checks.py",
        "if MigrationRecorder(connection).has_table():",
        "if True:",
        "test_keys.py::test_a_database_that_was_never_migrated_is_not_reported",
    ),
)

# Many readers of one response, and a response that is about to expire.

FILL = (
    Sabotage(
        "each of many readers queries the database",
        "freshness/journal.lua",
        "if taken and together and may_wait == '1' then return {'filling'} end",
        "",
        "test_waiting.py::test_only_one_of_fifty_cold_readers_queries_the_database",
    ),
    Sabotage(
        "a reader does not announce its fill",
        "freshness/journal.lua",
        "return nil, e, together and not taken",
        "return nil, e, false",
        "test_waiting.py::test_only_one_of_fifty_cold_readers_queries_the_database",
    ),
    Sabotage(
        "a reader that does not wait gets a stale response",
        "freshness/journal.lua",
        "if e[3] and not why and (taken or",
        "if e[3] and (taken or not why and",
        "test_waiting.py::test_a_stale_entry_is_not_served_while_it_is_refilled",
    ),
    Sabotage(
        "every reader waits for a reader that died",
        "freshness/journal.lua",
        "local lately = math.abs(now - math.abs(filling)) < WAIT_TIMEOUT",
        "local lately = true",
        "test_waiting.py::test_another_reader_takes_over_the_fill_of_a_killed_reader",
    ),
    Sabotage(
        "a reader waits twice as long as the wait timeout",
        "freshness/entries.py",
        "monotonic() + conf.WAIT_TIMEOUT",
        "monotonic() + 2 * conf.WAIT_TIMEOUT",
        "test_waiting.py::test_a_reader_stops_waiting_for_a_killed_reader_at_the_wait_timeout",
    ),
    Sabotage(
        "readers wait while a lease is open",
        "freshness/journal.lua",
        "why ~= 'leased' and why ~= 'recovering' and ",
        "",
        "test_waiting.py::test_no_reader_waits_while_a_lease_is_open",
    ),
    Sabotage(
        "a reader that got a 404 does not end its fill",
        "freshness/entries.py",
        "journal.abandon(key, miss)",
        "pass",
        "test_waiting.py::test_no_reader_waits_for_a_fill_that_ended_in_404",
    ),
    Sabotage(
        "after a failed fill the other readers wait for each other",
        "freshness/journal.lua",
        "(filling >= 0 or not lately)",
        "true",
        "test_waiting.py::test_no_reader_waits_within_one_wait_timeout_after_a_failed_fill",
    ),
    Sabotage(
        "a store ends another reader's fill",
        "freshness/journal.lua",
        "if there[4] == read_at then",
        "if there[4] then",
        "test_waiting.py::test_a_late_reader_does_not_end_the_fill_of_another",
    ),
    Sabotage(
        "a failure ends another reader's fill",
        "freshness/journal.lua",
        "if call('HGET', entry, 'filling') ~= read_at then return end",
        "",
        "test_waiting.py::test_a_late_reader_does_not_end_the_fill_of_another",
    ),
    Sabotage(
        "tags without a response count as a response",
        "freshness/journal.lua",
        "if e[3] and not why and (",
        "if not why and (",
        "test_waiting.py::test_a_read_under_a_lease_is_not_served_after_the_lease_is_withdrawn",
    ),
    Sabotage(
        "a refused store makes the previous entry look newer",
        "freshness/journal.lua",
        "if not (why == 'raced' or why and there[3]) then",
        "if why ~= 'raced' then",
        "test_waiting.py::test_a_stale_entry_is_still_stale_after_a_lease_is_withdrawn",
    ),
    Sabotage(
        "the marker of a fill never expires",
        "freshness/journal.lua",
        "if not e[1] then call('PEXPIRE', entry, WAIT_TIMEOUT / 1000) end",
        "",
        "test_waiting.py::test_the_mark_of_a_fill_expires_after_the_wait_timeout",
    ),
    Sabotage(
        "when the clock steps back, readers wait until it has caught up",
        "freshness/journal.lua",
        "math.abs(now - math.abs(filling))",
        "now - math.abs(filling)",
        "test_journal.py::test_a_clock_that_steps_back_keeps_no_reader_waiting",
    ),
    Sabotage(
        "no entry is refreshed early",
        "freshness/journal.lua",
        "now + e[4] * draw <",
        "now <",
        "test_waiting.py::test_an_entry_expires_early_as_often_as_the_xfetch_formula_says",
    ),
    Sabotage(
        "an entry is never old enough for an early refresh",
        "freshness/journal.lua",
        "(taken or now + e[4] * draw < tonumber(e[5]))",
        "true",
        "test_waiting.py::test_an_entry_is_read_again_when_its_ttl_has_passed",
    ),
    Sabotage(
        "all readers refresh an entry early at the same time",
        "freshness/journal.lua",
        "(taken or now",
        "(now",
        "test_waiting.py::test_other_readers_get_the_entry_while_one_refills_it_early",
    ),
    Sabotage(
        "β is ignored",
        "freshness/entries.py",
        " * conf.BETA",
        "",
        "test_waiting.py::test_an_entry_expires_early_as_often_as_the_xfetch_formula_says",
    ),
    Sabotage(
        "the duration of a fill is not stored",
        "freshness/journal.py",
        "round(cost * 1_000_000)",
        "0",
        "test_waiting.py::test_an_entry_expires_early_as_often_as_the_xfetch_formula_says",
    ),
)

# The engine in a project of its own.

HOME = (
    Sabotage(
        "a fill that writes with raw SQL is read again",
        "freshness/connection.py",
        """recording.refuse(f"It writes""",
        """str(f"It writes""",
        "test_drf_views.py::test_a_get_that_writes_with_sql_is_never_cached_and_writes_once",
    ),
    Sabotage(
        "a view whose queryset is none() cannot be checked",  # plain-words: code
        "freshness/checks.py",
        "with suppress(EmptyResultSet):",
        "with suppress():",
        "test_take_home.py::test_django_finds_nothing_wrong_with_the_blog",
    ),
    Sabotage(
        "a key does not contain the language",
        "freshness/views.py",
        "{address} {translation.get_language()} ",
        "{address} ",
        "test_drf_views.py::test_each_language_and_each_time_zone_has_its_own_entry",
    ),
    Sabotage(
        "a key does not contain the time zone",
        "freshness/views.py",
        " {timezone.get_current_timezone_name()}",
        "",
        "test_drf_views.py::test_each_language_and_each_time_zone_has_its_own_entry",
    ),
    Sabotage(
        "the actions of a viewset share their entries",
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
        "a view with per-user permissions is cached",
        "freshness/views.py",
        "if each not in READ_BY_EVERYBODY",
        "if False",
        "test_drf_views.py::test_a_view_that_not_everybody_may_read_is_refused_when_it_is_loaded",
    ),
    Sabotage(
        "a view that overrides a permission method is cached",
        "freshness/views.py",
        "if name in vars(each)",
        "if False",
        "test_drf_views.py::test_a_view_that_not_everybody_may_read_is_refused_when_it_is_loaded",
    ),
    Sabotage(
        "a write skips the view's permissions",
        "freshness/views.py",
        "return [] if self._is_read else super().get_permissions()",  # plain-words: code
        "return []",
        "test_drf_views.py::test_a_viewset_keeps_the_permissions_of_its_writes",
    ),
    Sabotage(
        "a cached read authenticates its user",
        "freshness/views.py",
        "return [] if self._is_read and not self._is_filling else super().get_authenticators()",  # plain-words: code
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
        "the format in an address is ignored",
        "freshness/views.py",
        "for renderer in self.get_renderers() if self._is_filling else ():",  # plain-words: code
        "for renderer in ():",
        "test_drf_views.py::test_a_url_that_requests_the_browsable_page_gets_it",
    ),
    Sabotage(
        "a response is stored without its headers",
        "freshness/views.py",
        "if more := _more_than_json(response):",
        "if more := None:",
        "test_drf_views.py::test_a_response_that_is_more_than_json_is_served_whole_and_never_cached",
    ),
    Sabotage(
        "a header that a view reads is not recorded",
        "freshness/requests.py",
        'note(f"the header {name}")',
        "pass",
        "test_drf_views.py::test_a_view_that_depends_on_its_reader_is_served_and_never_cached[by-header-the header X-Author]",
    ),
    Sabotage(
        "a key of META that a view reads is not recorded",
        "freshness/requests.py",
        'note("the request\'s body" if',
        'str("the request\'s body" if',
        "test_drf_views.py::test_a_view_that_depends_on_its_reader_is_served_and_never_cached",
    ),
    Sabotage(
        "an attribute that a middleware added is not recorded when a view reads it",
        "freshness/requests.py",
        "(name in self._added or name",
        "(name",
        "test_drf_views.py::test_a_view_that_depends_on_its_reader_is_served_and_never_cached",
    ),
    Sabotage(
        "the parameters have the order of the first request",
        "freshness/requests.py",
        "for name in sorted(request.GET):",
        "for name in request.GET:",
        "test_drf_views.py::test_the_order_of_the_query_parameters_does_not_change_the_response",
    ),
    Sabotage(
        "a window function depends only on the rows that it returns",
        "freshness/dependencies.py",
        "self.counts_others = self.counts_others or isinstance(expression, Window)",
        "pass",
        "test_drf_views.py::test_a_deletion_moves_the_ranks_of_the_remaining_rows",
    ),
    Sabotage(
        "a query with GROUP BY cannot be analysed",
        "freshness/dependencies.py",
        "        for each in self.query.group_by if isinstance(self.query.group_by, tuple) else ():\n",  # plain-words: code
        '        if self.query.group_by is not None:\n            raise Unreadable("It groups.")\n        for each in ():\n',
        "test_drf_views.py::test_paginations_filters_annotations_prefetches_and_viewsets_are_cached[/other/counted/]",
    ),
    Sabotage(
        "a random order is stored",
        "freshness/dependencies.py",
        '("Random", "RandomUUID")',
        "()",
        "test_drf_views.py::test_a_response_in_random_order_is_not_cached",
    ),
    Sabotage(
        "a cached GET may write",
        "freshness/compiler.py",
        "if recorder() is not None:",
        "if False:",
        "test_drf_views.py::test_a_get_that_writes_is_refused",
    ),
)

# Other writers: the triggers on PostgreSQL, whose specs need the real stack.


def watched(what: str, file: str, old: str, new: str, spec: str) -> Sabotage:
    """A sabotage of the triggers or of the mark."""
    return Sabotage(what, f"freshness/postgresql/{file}", old, new, spec if "::" in spec else f"test_other_writers.py::{spec}", "real")


def seen(way: str) -> str:
    """The spec in which another program writes in this way."""
    return f"test_a_write_of_another_program_is_in_the_reads_after_the_next_verification[{way}]"


OTHER_WRITERS = (
    watched(
        "mark: it counts for every table",
        "triggers.py",
        "OR pg_catalog.strpos(pg_catalog.split_part(pg_catalog.current_query(), '*/', 1), %s) = 0",
        "OR %s IS NULL",
        "test_a_mark_counts_for_the_tables_that_it_names",
    ),
    watched(
        "mark: it counts for every program",
        "triggers.py",
        " || pg_catalog.translate(pg_catalog.current_setting('application_name'), ' */%%', '____') || ' '",
        "",
        seen("a statement copied from this application's log"),
    ),
    watched(
        "mark: it counts for the triggers that the statement fires",
        "triggers.py",
        "pg_catalog.pg_trigger_depth() > 0\nOR NOT",
        "NOT",
        seen("a trigger that an update of the same table fires"),
    ),
    watched(
        "mark: a space in application_name ends a word",
        "triggers.py",
        'UNSAFE = str.maketrans(" */%", "____")',
        'UNSAFE = str.maketrans("*/%", "___")',
        "test_a_statement_is_recognized_under_any_application_name[a name]",
    ),
    watched(
        "mark: the log of queries shows it",
        "base.py",
        "return triggers.unmarked(found) if found else found",
        "return found",
        "test_the_mark_is_invisible_to_execute_wrappers_and_to_the_log_of_queries",
    ),
    watched(
        "mark: COPY has none",
        "base.py",
        "self.cursor.copy(self._marked(statement, tables), ",
        "self.cursor.copy(statement, ",
        "test_writes.py::test_no_way_to_write_leaves_a_row_in_the_outbox",
    ),
    watched(
        "mark: stream() has none",
        "base.py",
        "self.cursor.stream(self._marked(query, tables), ",
        "self.cursor.stream(query, ",
        "test_sql.py::test_no_way_to_send_a_write_leaves_a_row_in_the_outbox",
    ),
    watched(
        "mark: executemany() has none",
        "base.py",
        "super()._executemany(self._marked(sql, self.written), ",
        "super()._executemany(sql, ",
        "test_sql.py::test_no_way_to_send_a_write_leaves_a_row_in_the_outbox",
    ),
    watched(
        "mark: callproc() has none",
        "base.py",
        'with self.db.statement("CALL procedure()") as tables, self.writing(tables):',
        'with self.db.statement("CALL procedure()"):',
        "test_sql.py::test_no_way_to_send_a_write_leaves_a_row_in_the_outbox",
    ),
    Sabotage(
        "mark: a statement that a wrapper replaced has that of the original",
        "freshness/cursor.py",
        'with connection.statement(text_of(sql, connection)) as tables, context["cursor"].writing(tables):',
        "with connection.statement(text_of(sql, connection)):",
        "test_sql.py::test_no_way_to_send_a_write_leaves_a_row_in_the_outbox",
        "real",
    ),
    watched(
        "triggers: they rest under session_replication_role",
        "triggers.py",
        "ENABLE ALWAYS TRIGGER",
        "ENABLE TRIGGER",
        seen("session_replication_role"),
    ),
    watched("triggers: TRUNCATE has none", "triggers.py", '    "TRUNCATE": "",\n', "", seen("TRUNCATE")),
    watched(
        "triggers: a disabled one is not reported",
        "triggers.py",
        'existing.get((each.table, each.name)) != "A"})',
        "(each.table, each.name) not in existing})",
        "test_a_trigger_that_is_missing_disabled_or_outdated_is_reported_until_the_next_migrate[disabled]",
    ),
    watched(
        "triggers: an outdated function is not reported",
        "triggers.py",
        "if not is_current or existing",
        "if existing",
        "test_an_outdated_function_is_reported_until_the_next_migrate",
    ),
    watched(
        "triggers: those of other tables stay",
        "triggers.py",
        '            execute(f"DROP TRIGGER {name} ON {table}")\n',
        "            pass\n",
        "test_the_triggers_follow_the_tracked_models",
    ),
    watched(
        "triggers: each migrate creates them again",
        "triggers.py",
        'if existing.pop((trigger.table, trigger.name), None) != "A":',
        "if existing.pop((trigger.table, trigger.name), None) != trigger:",
        "test_each_tracked_table_has_a_trigger_for_each_kind_of_statement",
    ),
    watched(
        "triggers: other programs cannot write without an outbox",
        "triggers.py",
        '            execute("DROP FUNCTION IF EXISTS freshness_outbox() CASCADE")',
        "            pass",
        "test_without_an_outbox_there_are_no_triggers",
    ),
    watched(
        "triggers: a table of another owner stops migrate",
        "triggers.py",
        "except InsufficientPrivilege as error:",
        "except KeyError as error:",
        "test_a_table_of_another_owner_is_left_alone_with_a_warning",
    ),
    watched(
        "rights: every role needs one to the outbox",
        "outbox.sql",
        "LANGUAGE plpgsql SECURITY DEFINER SET",
        "LANGUAGE plpgsql SET",
        "test_a_role_without_a_right_to_the_outbox_can_write",
    ),
    watched(
        "rights: a role's own functions are called",
        "outbox.sql",
        " SET search_path = pg_catalog, pg_temp AS $$",
        " AS $$",
        "test_a_role_without_a_right_to_the_outbox_can_write",
    ),
    watched(
        "rows: an UPDATE that changes no value counts",
        "outbox.sql",
        "IF is_known AND NOT is_changed THEN",
        "IF false THEN",
        "test_an_update_that_changes_no_value_leaves_no_row",
    ),
    watched(
        "rows: equal values that differ count as unchanged",
        "outbox.sql",
        "format('record_image_ne(ROW(%s), ROW(%s))'",
        "format('ROW(%s) IS DISTINCT FROM ROW(%s)'",
        "test_a_value_that_is_equal_and_is_shown_differently_counts_as_changed",
    ),
    watched(
        "rows: a changed key counts as unchanged",
        "outbox.sql",
        "'SELECT count(*) = (SELECT count(*) FROM freshness_new), ",
        "'SELECT true, ",
        seen("UPDATE of a primary key"),
    ),
    watched(
        "rows: a row that is deleted and inserted again counts as new",
        "outbox.sql",
        "        is_known := is_known AND NOT is_again;\n",
        "",
        seen("DELETE and INSERT"),
    ),
    watched(
        "rows: any number has tags of its own",
        "outbox.sql",
        "is_known := is_known AND number <= @MANY_ROWS@;",
        "is_known := is_known;",
        "test_a_write_of_up_to_100_rows_has_the_tags_of_its_rows[101-False]",
    ),
    watched(
        "rows: a text that a tag quotes has a tag of its own",
        "outbox.sql",
        "bool_and(value ~ ''^[A-Za-z0-9_.~-]*$'')",
        "true",
        "test_a_key_that_a_tag_would_quote_has_the_tag_of_the_table",
    ),
    watched(
        "rows: the new value of a reference is not tagged",
        "outbox.sql",
        "FROM unnest(refs) x\n        ) y(part);",
        "FROM unnest(refs) x WHERE false\n        ) y(part);",
        "test_a_trigger_finds_the_tags_that_the_model_finds[an UPDATE of a foreign key]",
    ),
    watched(
        "rows: a renamed column stops other programs",
        "outbox.sql",
        "AND NOT attisdropped)\n    );",
        "AND NOT attisdropped) AND false\n    );",
        "test_a_column_that_a_migration_has_renamed_does_not_stop_other_programs",
    ),
)

SABOTAGES = (*BOUND, *JOURNAL, *SERVERS, *TAGS, *COMMIT, *SQL, *READ, *KEYS, *FILL, *HOME, *OTHER_WRITERS)


# Running them


class Misfit(Exception):
    """The old text of a sabotage is not in its file exactly once."""


def carry_out(sabotage: Sabotage, tree: Path) -> None:
    """Apply a sabotage to `tree`. Raises Misfit, and changes nothing, if it does not fit."""
    file = tree / "housing" / sabotage.file
    text = file.read_text(encoding="utf-8")
    if (times := text.count(sabotage.old)) != 1:
        raise Misfit(f"its old text is {times} times in housing/{sabotage.file} instead of once: update tests/sabotages.py")
    file.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")


@contextmanager
def a_copy(root: Path) -> Iterator[Path]:
    """A temporary copy of the parts of the tree that are needed."""
    with tempfile.TemporaryDirectory(prefix="housing-sabotage-") as folder:
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, Path(folder, name))
            else:
                shutil.copy2(root / name, folder)
        yield Path(folder)


def outcome(tree: Path, spec: str, timeout: int, *options: str) -> str:
    """The last line that pytest prints about this spec in this tree: "1 failed in 0.12s". Raises TimeoutExpired."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *options, f"tests/{spec}"]
    ended = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    return (ended.stdout.strip().splitlines() or ["nothing"])[-1]


def complaint(sabotage: Sabotage, root: Path = ROOT, timeout: int = TIMEOUT) -> str | None:
    """The complaint about a sabotage, in one clause, or None if its spec fails as it should."""
    with a_copy(root) as tree:
        try:
            carry_out(sabotage, tree)
            result = outcome(tree, sabotage.spec, timeout, *([] if sabotage.stack == "embedded" else [f"--stack={sabotage.stack}"]))
        except Misfit as misfit:
            return str(misfit)
        except subprocess.TimeoutExpired:
            return f"{sabotage.spec} did not finish within {timeout} s"
    if " failed" in result:
        return None
    return f"{sabotage.spec} still passes" if " passed" in result else f"{sabotage.spec} cannot be run: {result}"


def run(sabotages: Sequence[Sabotage], root: Path = ROOT) -> list[str]:
    """All complaints, one line each, with a progress bar. After Ctrl-C no copy is left."""
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
    """The command `python -m tests.sabotages`. Returns 0 if every spec fails as it should, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sabotages", description="Change one line of housing/ at a time, in a copy, and check that its spec fails."
    )
    parser.add_argument("words", nargs="*", help="run only sabotages whose description or file contains these words")
    parser.add_argument("--stack", choices=STACKS, default="embedded", help="run those whose specs need this stack (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    words = " ".join(parsed.words)
    chosen = [sabotage for sabotage in SABOTAGES if sabotage.stack == parsed.stack and words in f"{sabotage.file} {sabotage.what}"]
    if not chosen:
        parser.error(f"no sabotage has “{words}” in its description or file")
    try:
        complaints = run(chosen)
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"{len(chosen)} sabotages, {len(chosen) - len(complaints)} noticed.")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
