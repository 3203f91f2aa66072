"""Sabotages of scopes through a join."""

from tests.sabotages import Sabotage

JOINED = (
    Sabotage(
        "joined: a write does not tag the scope through a join in which its row stays",
        "freshness/changes.py",
        'else [f"{scope}.{each}" for each in changed]',  # plain-words: code
        "else []",  # plain-words: code
        "test_joined.py::test_a_new_price_in_one_city_leaves_the_sorted_pages_of_another_warm[city-save()]",
    ),
    Sabotage(
        "joined: an UPDATE does not tag the scope through a join that its row enters",
        "freshness/changes.py",
        "yield from [scope] if joined.reference in changed else",  # plain-words: code
        "yield from [] if joined.reference in changed else",  # plain-words: code
        "test_joined.py::test_a_listing_that_moves_to_another_city_is_in_its_list[city-save()]",
    ),
    Sabotage(
        "joined: an UPDATE has no condition",
        "freshness/changes.py",
        "yield trusting(table, joined, joined.key_text(reference))",
        "pass",
        "test_joined.py::test_an_update_is_not_trusted_if_what_it_read_moves",
        "real",
    ),
    Sabotage(
        "joined: an INSERT does not tag the scope through a join that its row enters",
        "freshness/compiler.py",
        'tags |= {f"{table.name}.{joined.name}={joined.text(value)}+" for value in values}',
        "pass",
        "test_joined.py::test_a_new_listing_in_one_city_leaves_the_pages_of_another_warm[city]",
    ),
    Sabotage(
        "joined: an INSERT has no condition",
        "freshness/compiler.py",
        "tags |= {trusting(table, joined, joined.key_text(_prepared(written[joined.reference], value))) for value in references}",
        "pass",
        "test_joined.py::test_a_move_that_commits_before_the_lease_of_a_write_is_noticed",
        "real",
    ),
    Sabotage(
        "joined: an INSERT of very many rows tags no scope through a join",
        "freshness/compiler.py",
        "return {table.unjoined}",
        "return set()",
        "test_joined.py::test_very_many_new_listings_invalidate_the_pages_of_each_city",
        "real",
    ),
    Sabotage(
        "joined: a save after a lock tags no scope through a join",
        "freshness/compiler.py",
        "through_joins = {tag for _, after in self._images",
        "through_joins = {tag for _, after in ()",
        "test_joined.py::test_a_listing_that_moves_to_another_city_is_in_its_list[city-save() after a lock]",
    ),
    Sabotage(
        "joined: an entry depends on no write whose scopes through a join are unknown",
        "freshness/dependencies.py",
        '({table.unjoined} if ">" in column else set())',  # plain-words: code
        "set()",
        "test_joined.py::test_very_many_new_listings_invalidate_the_pages_of_each_city",
        "real",
    ),
    Sabotage(
        "joined: a query without keys counts as one that knows its rows",
        "freshness/dependencies.py",
        "self.query.group_by is None and not self.counts_others and self._position(alias, self.tables[alias], select) is not None",
        "True",
        "test_joined.py::test_a_number_of_listings_in_a_city_depends_on_the_whole_list",
    ),
    Sabotage(
        "joined: a condition on a smaller scope is forgotten with it",
        "freshness/dependencies.py",
        "self.selecting[alias] |= {own[0]} if own else set()",  # plain-words: code
        "pass",
        "test_joined.py::test_a_listing_by_city_and_status_depends_on_the_status_within_the_city",
    ),
    Sabotage(
        "joined: a new row makes the entries of its scope stale although no row refers to it",
        "freshness/dependencies.py",
        'set() if alias in implied else {f"{scope}+" for scope in scopes}',  # plain-words: code
        '{f"{scope}+" for scope in scopes}',
        "test_joined.py::test_a_new_location_in_a_city_leaves_its_lists_warm",
    ),
    Sabotage(
        "joined: a copy of a column is another column",
        "freshness/dependencies.py",
        "while isinstance(left, Copy):",
        "while False:",
        "test_joined.py::test_a_new_listing_in_one_city_leaves_the_pages_of_another_warm[city]",
    ),
    Sabotage(
        "joined: a lease breaks no condition of another",
        "freshness/journal.lua",
        "  break_conditions(j, broken)\n  record(",
        "  record(",
        "test_joined.py::test_a_write_is_not_trusted_any_longer_if_what_it_read_may_move_before_its_commit[the row leaves a scope]",
    ),
    Sabotage(
        "joined: a verification breaks no condition",
        "freshness/journal.lua",
        "if j.epoch ~= tonumber(epoch) then return '0' end\n  break_conditions(j, broken)",
        "if j.epoch ~= tonumber(epoch) then return '0' end",
        "test_joined.py::test_a_move_of_another_program_breaks_the_trust_when_it_is_found",
    ),
    Sabotage(
        "joined: a lease trusts what has moved since",
        "freshness/journal.lua",
        "#more == 0 and not doubt(j, tonumber(epoch), tonumber(since), watched)",
        "#more == 0",
        "test_joined.py::test_a_write_is_not_trusted_if_what_it_read_may_have_moved_since[the row leaves a scope]",
    ),
    Sabotage(
        "joined: a lease trusts while another version is there",
        "freshness/journal.lua",
        "#more == 0 and not doubt(",
        "not doubt(",
        "test_joined.py::test_a_write_is_not_trusted_while_another_version_of_the_code_is_there",
    ),
    Sabotage(
        "joined: a close trusts a lease that has run out or was widened",
        "freshness/journal.lua",
        "if conditions ~= '' and not call('ZMSCORE', journal, held)[1] then",
        "if false then",
        "test_joined.py::test_a_write_is_not_trusted_if_its_lease_has_run_out",
    ),
    Sabotage(
        "joined: a close leaves a widened lease open",
        "freshness/journal.lua",
        "  record(j, text(j.last), closed)\n  call('ZREM', journal, held, widened(held))",
        "  record(j, text(j.last), closed)\n  call('ZREM', journal, held)",
        "test_joined.py::test_a_write_is_not_trusted_any_longer_if_what_it_read_may_move_before_its_commit[the row leaves a scope]",
    ),
    Sabotage(
        "joined: a withdrawal leaves a widened lease open",
        "freshness/journal.lua",
        "conditions)\n  call('ZREM', journal, held, widened(held))\nend",
        "conditions)\n  call('ZREM', journal, held)\nend",
        "test_joined.py::test_a_withdrawn_lease_is_gone_even_if_it_is_not_trusted_any_longer",
    ),
    Sabotage(
        "joined: a process that knows no instant is trusted",
        "freshness/journal.py",
        "plain, conditions = plain | joined.distrusted(conditions), set()",
        "plain, conditions = plain, set()",
        "test_joined.py::test_a_write_of_a_process_that_knows_no_instant_is_not_trusted",
    ),
    Sabotage(
        "joined: the outbox has the conditions of a write and not its tags",
        "freshness/connection.py",
        "plain | distrusted(conditions)",
        "plain",
        "test_joined.py::test_a_write_without_redis_is_not_trusted",
    ),
    Sabotage(
        "joined: the instant is taken when a transaction has read",
        "freshness/connection.py",
        "return journal.lease(tags, self.scopes[0].since)",
        "return journal.lease(tags, journal.seen)",
        "test_joined.py::test_a_move_that_commits_before_the_lease_of_a_write_is_noticed",
        "real",
    ),
    Sabotage(
        "joined: a deletion breaks no condition",
        "freshness/joined.py",
        "found.update((row, f",
        "found.update((f",
        "test_joined.py::test_a_write_is_not_trusted_if_what_it_read_may_have_moved_since[the row is deleted]",
    ),
    Sabotage(
        "joined: unknown moves break no condition",
        "freshness/joined.py",
        'if f"{name}:*" in tags or f"{name}:?" in tags:',  # plain-words: code
        "if False:",
        "test_joined.py::test_a_write_is_not_trusted_any_longer_if_what_it_read_may_move_before_its_commit[rows are written, and nobody knows which]",
    ),
    Sabotage(
        "joined: too many moves of others break no condition",
        "freshness/joined.py",
        "return {TRUST}",
        "return set()",
        "test_joined.py::test_a_move_among_very_many_of_other_programs_breaks_the_trust",
    ),
    Sabotage(
        "joined: a key ends at its first dot",
        "freshness/joined.py",
        "for count in range(1, len(parts) + 1)",
        "for count in (1,)",
        "test_joined.py::test_a_key_may_have_dots",
    ),
)
