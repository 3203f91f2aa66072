"""Sabotages of places, of the intervals of entries, and of their comparison."""

from tests.sabotages import Sabotage

PLACES_ = "test_places.py::"
INTERVALS = "test_intervals.py::"
SCOPES = "test_scopes.py::"
BETWEEN = f"{INTERVALS}test_a_place_is_inside_if_it_is_between_the_ends_of_each_column"
QUERY = f"{PLACES_}test_an_interval_ends_at_a_position_or_at_a_number"
RACE = f"{PLACES_}test_a_row_is_on_the_page_of_its_place_in_every_order_of_steps"
MOVES = f"{PLACES_}test_a_price_that_moves_a_row_onto_a_page_is_in_the_next_read"

PLACES = (
    Sabotage(
        "places: tags of rows that were not read matter anywhere",
        "freshness/dependencies.py",
        "            tags -= reading.entering\n",
        "",
        f"{PLACES_}test_a_new_listing_leaves_the_pages_behind_a_cursor_warm[all]",
    ),
    Sabotage(
        "places: a condition less than a position bounds from below",
        "freshness/dependencies.py",
        "return Bound([*table.places].index(name), None, end) if is_less else",  # plain-words: code
        "return Bound([*table.places].index(name), end, None) if is_less else",  # plain-words: code
        f"{PLACES_}test_a_created_listing_that_is_not_the_newest_is_on_the_page_of_its_time[all-an older one]",
    ),
    Sabotage(
        "places: a time alone is an end",
        "freshness/dependencies.py",
        "if name is None or (type(column.target) is DateTimeField and column is lookup.lhs):",
        "if name is None:",
        f"{QUERY}[created_at <= a time]",
    ),
    Sabotage(
        "places: a condition on another table is an end",
        "freshness/dependencies.py",
        "if isinstance(column, Col) and column.alias == alias and column.target.column in table.places else None",  # plain-words: code
        "if isinstance(column, Col) and column.target.column in table.places else None",  # plain-words: code
        f"{QUERY}[the key of another table]",
    ),
    Sabotage(
        "places: a table that is joined twice has an interval",
        "freshness/dependencies.py",
        ".count(table.name) > 1:",
        ".count(table.name) > 9:",
        f"{QUERY}[the same table twice]",
    ),
    Sabotage(
        "places: distinct rows have an interval",
        "freshness/dependencies.py",
        "(self.counts_others or self.query.distinct or alias in self.by_pk)",
        "(self.counts_others or alias in self.by_pk)",
        f"{QUERY}[distinct rows]",
    ),
    Sabotage(
        "places: rows after an offset have an interval",
        "freshness/dependencies.py",
        "(self.counts_others or self.query.distinct or alias in self.by_pk)",
        "(self.query.distinct or alias in self.by_pk)",
        f"{QUERY}[an offset]",
    ),
    Sabotage(
        "places: a tag of two intervals is compared with one of them",
        "freshness/dependencies.py",
        "{tag for tag in tags if every[tag] == 1}",
        "set(tags)",
        f"{PLACES_}test_a_response_with_two_intervals_of_a_table_depends_on_rows_anywhere_by_their_common_tags",
    ),
    Sabotage(
        "places: a query without an interval is forgotten when another one has one",
        "freshness/dependencies.py",
        "self._anywhere |= tags",
        "self._anywhere = tags",
        f"{PLACES_}test_a_tag_of_a_query_without_an_interval_matters_for_rows_anywhere[at first]",
    ),
    Sabotage(
        "places: the last page ends at its last row",
        "freshness/places.py",
        "if self.order and shown and len(shown) + len(beyond) >= self.order.limit:",
        "if self.order and shown:",
        f"{PLACES_}test_the_last_page_is_open_after_its_last_row[all]",
    ),
    Sabotage(
        "places: a descending order ends above",
        "freshness/places.py",
        "if order.is_descending else Bound",  # plain-words: code
        "if not order.is_descending else Bound",  # plain-words: code
        f"{MOVES}[all-save()-price]",
    ),
    Sabotage(
        "places: the row after the last one may leave unnoticed",
        "freshness/places.py",
        "for row in beyond]",
        "for row in ()]",
        f"{PLACES_}test_a_page_loses_its_link_with_the_only_row_after_it[moved before the page]",
    ),
    Sabotage(
        "places: decimals of any number of digits have places",
        "freshness/places.py",
        "and field.max_digits and field.max_digits <= DIGITS:",
        "and field.max_digits:",
        f"{PLACES_}test_only_columns_whose_order_is_certain_have_places",
    ),
    Sabotage(
        "places: a number that is not exact has a place",
        "freshness/places.py",
        "if is_exact and -EXACT < number < EXACT else None",  # plain-words: code
        "if is_exact else None",  # plain-words: code
        f"{PLACES_}test_a_number_that_is_not_exact_has_no_place[{2**53}]",
    ),
    Sabotage(
        "places: a number between two places has the nearer one",
        "freshness/places.py",
        "if is_exact and -EXACT",
        "if -EXACT",
        f"{PLACES_}test_a_number_that_is_not_exact_has_no_place[2.5]",
    ),
    Sabotage(
        "places: a text of a time may have another form than Django writes",
        "freshness/places.py",
        " and (has_zone or str(time) == str(value))",
        "",
        f"{PLACES_}test_a_time_of_another_form_has_no_place[2026-01-01 00:00:00.5-False]",
    ),
    Sabotage(
        "places: several rows count as their smallest place",
        "freshness/places.py",
        "(min(ends), max(ends)) if len",
        "(min(ends), min(ends)) if len",
        f"{PLACES_}test_the_rows_between_the_oldest_and_the_newest_of_an_insert_count[all]",
    ),
    Sabotage(
        "places: one unknown place of several is left out",
        "freshness/places.py",
        "        if span is None:\n            return None\n",
        "        if span is None:\n            continue\n",
        f"{PLACES_}test_an_insert_with_one_unknown_time_may_be_anywhere[all]",
    ),
    Sabotage(
        "places: the place before an UPDATE counts",
        "freshness/compiler.py",
        "for _, after in images if after is not None]",
        "for after, _ in images if after is not None]",
        f"{MOVES}[all-save()--price]",
    ),
    Sabotage(
        "places: an UPDATE without images has no place",
        "freshness/compiler.py",
        "[[None] * len(table.places)] if places is None else places",  # plain-words: code
        "() if places is None else places",  # plain-words: code
        f"{PLACES_}test_an_update_whose_images_are_unknown_is_inside_of_every_interval[all]",
    ),
    Sabotage(
        "places: those of a released savepoint are lost",
        "freshness/connection.py",
        "                self.placed(name, places)\n",
        "                pass\n",
        f"{PLACES_}test_the_places_of_a_released_savepoint_count[all]",
    ),
    Sabotage(
        "places: a lease has one for each row",
        "freshness/connection.py",
        "if len(known) > MANY_PLACES:",
        "if False:",
        f"{PLACES_}test_many_places_are_replaced_by_the_span_of_all[all]",
    ),
    Sabotage(
        "intervals: a row at an end is outside",
        "freshness/journal.lua",
        "if high < bound[1] or",
        "if high <= bound[1] or",
        f"{BETWEEN}[10-0:10:20-False]",
    ),
    Sabotage(
        "intervals: an unknown place is outside",
        "freshness/journal.lua",
        "      if bound and low then\n",
        "      if bound and not low then return false end\n      if bound and low then\n",
        f"{BETWEEN}[-0:10:20-False]",
    ),
    Sabotage(
        "intervals: the span of several rows is its largest place",
        "freshness/journal.lua",
        "if low > bound[3] or",
        "if high > bound[3] or",
        f"{BETWEEN}[1:30-0:10:20-False]",
    ),
    Sabotage(
        "intervals: a write without places is outside",
        "freshness/journal.lua",
        "    return not known\n",
        "    return false\n",
        f"{INTERVALS}test_a_write_without_places_of_the_table_may_be_anywhere[no places]",
    ),
    Sabotage(
        "intervals: the places of another table are compared",
        "freshness/journal.lua",
        "if held:sub(first, first + #interval.prefix - 1) == interval.prefix then",
        "if true then",
        f"{INTERVALS}test_a_write_without_places_of_the_table_may_be_anywhere[of another table]",
    ),
    Sabotage(
        "intervals: a row that was read and is not shown may leave",
        "freshness/journal.lua",
        "ipairs(known and interval.rows or {})",
        "ipairs({})",
        f"{INTERVALS}test_a_row_that_was_read_and_is_not_shown_counts_as_inside",
    ),
    Sabotage(
        "intervals: every tag is compared",
        "freshness/journal.lua",
        "        if mine[tag] == true then return 'raced', tag end\n",
        "",
        f"{INTERVALS}test_a_tag_that_matters_anywhere_is_not_compared",
    ),
    Sabotage(
        "intervals: all tags belong to the first interval",
        "freshness/journal.lua",
        "mine[line] = intervals[#intervals] or true",
        "mine[line] = intervals[1] or true",
        f"{INTERVALS}test_two_intervals_are_compared_each_with_its_own_tags",
    ),
    Sabotage(
        "intervals: an open lease is outside",
        "freshness/journal.lua",
        "within[interval] = is_within(interval, held)",
        "within[interval] = is_closed and is_within(interval, held)",
        f"{INTERVALS}test_an_open_lease_is_compared_as_its_close_will_be[15-leased]",
    ),
    Sabotage(
        "intervals: no close is compared",
        "freshness/journal.lua",
        "for _, close in ipairs(closes) do",
        "for _, close in ipairs({}) do",
        f"{RACE}[moved, one preemption-all]",
    ),
    Sabotage(
        "intervals: a close leaves nothing to compare",
        "freshness/journal.lua",
        "record(j, text(j.last), split(tags), closed(lease, tags))",
        "record(j, text(j.last), split(tags))",
        f"{RACE}[created, one preemption-all]",
    ),
    Sabotage(
        "intervals: a lease that ran out leaves nothing to compare",
        "freshness/journal.lua",
        "      call('ZADD', journal, text(-LEASES - expiry), closed(id, held))\n",
        "",
        f"{INTERVALS}test_a_lease_that_ran_out_is_compared[15-False]",
    ),
    Sabotage(
        "intervals: a verification leaves nothing to compare",
        "freshness/journal.lua",
        "unfolded(tags), closed('outbox', tags))",
        "unfolded(tags))",
        f"{INTERVALS}test_a_write_that_a_verification_finds_may_be_anywhere",
    ),
    Sabotage(
        "intervals: a long write leaves nothing to compare",
        "freshness/journal.lua",
        "#held > LONG and '*' or held",
        "#held > LONG and '' or held",
        f"{INTERVALS}test_a_long_write_counts_as_one_of_everything",
    ),
    Sabotage(
        "intervals: any number of closes is compared",
        "freshness/journal.lua",
        "if #closes > MOST then return",
        "if false then return",
        f"{INTERVALS}test_more_closes_than_are_kept_are_not_compared",
    ),
    Sabotage(
        "intervals: all closes are kept",
        "freshness/journal.lua",
        "if lease:sub(1, 1) == '0' then",
        "if false then",
        f"{INTERVALS}test_the_journal_keeps_only_the_last_closes",
    ),
    Sabotage(
        "intervals: only as many closes are kept as are compared",
        "freshness/journal.lua",
        "'LIMIT', MOST, 1, 'WITHSCORES')[2]",
        "'LIMIT', MOST - 1, 1, 'WITHSCORES')[2]",
        f"{INTERVALS}test_the_journal_keeps_only_the_last_closes",
    ),
    Sabotage(
        "intervals: the same closes are compared again",
        "freshness/journal.lua",
        "if is_compared then redis.pcall(",
        "if false then redis.pcall(",
        f"{INTERVALS}test_closes_are_compared_once",
    ),
    Sabotage(
        "intervals: closes after the comparison are not compared",
        "freshness/journal.lua",
        "'read_at', text(j.last + 1)) end",
        "'read_at', text(j.last + 1e6)) end",
        f"{INTERVALS}test_closes_are_compared_once",
    ),
    Sabotage(
        "intervals: a hit fails if the server is full",
        "freshness/journal.lua",
        "redis.pcall('HSET'",
        "redis.call('HSET'",
        f"{INTERVALS}test_a_server_that_refuses_to_write_still_gives_a_hit",
    ),
    Sabotage(
        "intervals: a comparison counts as a newer read when a fill is stored",
        "freshness/journal.lua",
        "call('HMGET', entry, 'epoch', 'first', 'etag', 'filling')",
        "call('HMGET', entry, 'epoch', 'read_at', 'etag', 'filling')",
        f"{INTERVALS}test_a_fill_is_stored_although_the_entry_was_compared_after_it_began",
    ),
    Sabotage(
        "intervals: a comparison counts as a read when the database is unreachable",
        "freshness/journal.lua",
        "local since = clock() - math.max(tonumber(e[6]), j.verified or 0)",
        "local since = clock() - math.max(tonumber(e[2]), j.verified or 0)",
        f"{INTERVALS}test_an_entry_that_was_compared_keeps_its_age",
    ),
    Sabotage(
        "further scopes: they are not compared",
        "freshness/journal.lua",
        " and is_in_scopes(interval, held) then return true end",
        " then return true end",
        f"{SCOPES}test_a_new_row_leaves_the_pages_of_two_scopes_warm_if_it_is_in_one_of_them",
    ),
    Sabotage(
        "further scopes: a created row is in none",
        "freshness/journal.lua",
        "('\\n+.'):find(",
        "('\\n.'):find(",
        f"{SCOPES}test_a_new_row_leaves_the_pages_of_two_scopes_warm_if_it_is_in_one_of_them",
    ),
    Sabotage(
        "further scopes: a row leaves them if another column changes",
        "freshness/journal.lua",
        "('\\n+.'):find(",
        "('\\n+'):find(",
        f"{SCOPES}test_a_row_that_enters_one_scope_after_another_is_on_a_page_of_two_when_it_is_in_both",
    ),
    Sabotage(
        "further scopes: a row enters none by an UPDATE",
        "freshness/journal.lua",
        "('\\n+.'):find(",
        "('+.'):find(",
        f"{SCOPES}test_a_row_that_enters_one_scope_after_another_is_on_a_page_of_two_when_it_is_in_both",
    ),
    Sabotage(
        "further scopes: a longer name hides them",
        "freshness/journal.lua",
        "_, past = held:find('\\n' .. tag, past, true)",
        "past = nil",
        f"{INTERVALS}test_a_row_outside_of_a_further_scope_counts_as_outside_of_the_interval",
    ),
    Sabotage(
        "further scopes: one is enough",
        "freshness/journal.lua",
        "if not has(held, tags) then return false end",
        "if has(held, tags) then return true end",
        f"{INTERVALS}test_a_row_is_inside_only_if_it_is_in_each_further_scope",
    ),
    Sabotage(
        "further scopes: only the first of several values counts",
        "freshness/dependencies.py",
        "for value in sorted(values)], table.unscoped)",
        "for value in sorted(values)][:1], table.unscoped)",
        f"{SCOPES}test_the_lines_of_an_interval_have_every_tag_by_which_a_row_is_in_a_further_scope",
    ),
    Sabotage(
        "further scopes: rows of unknown cities are in none",
        "freshness/dependencies.py",
        "table.unscoped, table.unjoined)",
        "table.unscoped)",
        f"{SCOPES}test_the_lines_of_an_interval_have_every_tag_by_which_a_row_is_in_a_further_scope",
    ),
    Sabotage(
        "further scopes: a page is in the first one only",
        "freshness/dependencies.py",
        "for tags in self._further_scopes(alias, table)])",
        "for tags in ()])",
        f"{SCOPES}test_a_new_row_leaves_the_pages_of_two_scopes_warm_if_it_is_in_one_of_them",
    ),
)
