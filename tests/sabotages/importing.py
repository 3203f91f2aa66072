"""Sabotages of the import: how files, numbers and dates are read, and what is written."""

from tests.sabotages import Sabotage

IMPORTING = (
    Sabotage(
        "a comma between any digits is one of thousands",
        "formats.py",
        r'rf"|\d{{1,3}}(?:{mark}\d{{3}})+|',
        r'rf"|\d{{1,3}}(?:{mark}\d+)+|',
        "test_mappings.py::test_a_number_that_could_be_read_in_two_ways_is_refused[a comma that is not before three digits]",
    ),
    Sabotage(
        "the first format that reads a number wins",
        "formats.py",
        "    if any(value != values[0] for value in values):",
        "    if False:",
        "test_mappings.py::test_a_number_that_could_be_read_in_two_ways_is_refused[two formats with different values]",
    ),
    Sabotage(
        "a range is its low end, even if the mapping does not say so",
        "formats.py",
        "        if not self.range:",
        "        if False:",
        "test_mappings.py::test_a_number_that_could_be_read_in_two_ways_is_refused[a range]",
    ),
    Sabotage(
        "a unit may be the end of a word",
        "formats.py",
        "joined = rest[-1:].isalpha() and affix[0].isalpha()",  # plain-words: code
        "joined = False",
        "test_mappings.py::test_a_number_that_could_be_read_in_two_ways_is_refused[a unit inside a word]",
    ),
    Sabotage(
        "prose is searched for a range",
        "formats.py",
        "        if len(text) > LONGEST_NUMBER:",
        "        if False:",
        "test_mappings.py::test_a_number_that_could_be_read_in_two_ways_is_refused[more than a hundred characters]",
    ),
    Sabotage(
        "a date in a named zone is taken for UTC",
        "formats.py",
        "local = moment.replace(tzinfo=self.zone)",
        "local = moment.replace(tzinfo=datetime.UTC)",
        "test_mappings.py::test_a_date_is_the_instant_that_its_offset_or_zone_tells[a named zone, in summer]",
    ),
    Sabotage(
        "a time that the clocks repeat is the first of the two",
        "formats.py",
        "if moment.time() != datetime.time() and local.utcoffset()",
        "if False and local.utcoffset()",
        "test_mappings.py::test_a_date_that_could_be_two_instants_or_none_is_refused[a time that the clocks repeat]",
    ),
    Sabotage(
        "an offset as text in a date format is ignored",
        "formats.py",
        "    if found := ZONE.search(literal):",
        '    if found := ZONE.search(""):',
        "test_mappings.py::test_a_date_format_that_would_store_a_wrong_instant_is_refused",
    ),
    Sabotage(
        "the first delimiter that is tried wins",
        "tables.py",
        'DELIMITERS = ",;\\t|"',
        'DELIMITERS = ","',
        "test_import_files.py::test_a_file_is_read_as_it_was_exported[semicolons]",
    ),
    Sabotage(
        "the header is always the first row",
        "tables.py",
        "above += skipped",
        "above += 0",
        "test_import_files.py::test_a_file_is_read_as_it_was_exported[a title above the header]",
    ),
    Sabotage(
        "an encoding that is not declared is guessed",
        "tables.py",
        'marked or layout.encoding or "utf-8"',
        'marked or layout.encoding or "cp1252"',
        "test_import_files.py::test_an_encoding_is_declared_and_never_guessed",
    ),
    Sabotage(
        "standard input is closed",
        "tables.py",
        "    stack.callback(text.detach)",
        "    stack.callback(text.close)",
        "test_import_files.py::test_standard_input_is_read_and_stays_open",
    ),
    Sabotage(
        "the first of two columns with the same name is used",
        "tables.py",
        "        if self.times[wanted] > 1:",
        "        if self.times[wanted] > 1 and (wanted := wanted + ' (1)') is None:",
        "test_import_files.py::test_an_unreadable_file_is_one_clear_error[a column twice]",
    ),
    Sabotage(
        "only the first fault of a row is listed",
        "listings.py",
        "                    faults += refused.faults",
        "                    faults = faults or [*refused.faults]",
        "test_import_again.py::test_all_faults_of_a_row_are_listed",
    ),
    Sabotage(
        "a changed row is another property",
        "management/commands/import_listings.py",
        "            if wanted in by_id:",
        "            if wanted is by_id:",
        "test_import_again.py::test_a_changed_row_updates_its_property",
    ),
    Sabotage(
        "an update empties fields that the mapping does not have",
        "management/commands/import_listings.py",
        'if rule.given and name != "created_at"',
        'if name not in {"created_at", "source_id"}',
        "test_import_again.py::test_an_update_moves_a_property_to_another_location_and_keeps_what_the_file_does_not_have",
    ),
    Sabotage(
        "the last of two rows with one id wins",
        "management/commands/import_listings.py",
        "            if first != row.line:",
        "            if False:",
        "test_import_again.py::test_a_row_whose_id_an_earlier_row_has_is_refused",
    ),
    Sabotage(
        "a large transaction keeps every tag",
        "freshness/connection.py",
        'known.update(tags if len(known) <= MANY_ROWS else {f"{table}:-"}.intersection(tags))',  # plain-words: code
        "known.update(tags)",
        "test_commit.py::test_the_memory_of_a_transaction_does_not_grow_with_its_writes",
    ),
    Sabotage(
        "a date format that fits all examples is proposed, even if another one fits them, too",
        "management/commands/inspect_listings.py",
        "    if len(different) > 1:",
        "    if False:",
        "test_inspect.py::test_the_format_of_a_column_is_read_off_its_cells",
    ),
)
