"""Sabotages of SELECTs that are compiled once and executed often."""

from tests.sabotages import Sabotage

SELECTS = (
    Sabotage(
        "a SELECT that differs in more than its number is compiled for one number only",
        "freshness/dependencies.py",
        "if self._compiled.with_number(self.SAMPLE, most).equals(Select(queryset_for(most)))), -1)",
        "), 2**63 - 1)",
        "test_compiler.py::test_a_select_that_differs_in_more_than_its_number_is_compiled_for_each_number",
    ),
    Sabotage(
        "a SELECT that finds no row for two numbers finds none for any number",
        "freshness/dependencies.py",
        "return self._sql is not None and (",
        "return (",
        "test_compiler.py::test_a_select_that_differs_in_more_than_its_number_is_compiled_for_each_number",
    ),
    Sabotage(
        "an id that is too large for its column is sent to the database",
        "freshness/dependencies.py",
        "if 0 <= number <= self._largest:",
        "if 0 <= number and self._largest:",
        "test_compiler.py::test_a_compiled_detail_has_the_bytes_and_the_dependencies_of_djangos_own_queries",
    ),
    Sabotage(
        "a compiled SELECT has the tags of the models that were tracked before",
        "freshness/dependencies.py",
        "if self._tables is not tables() and self._queryset is not None:",
        "if False:",
        "test_compiler.py::test_a_select_is_compiled_again_after_the_tracked_models_have_changed",
    ),
    Sabotage(
        "a SELECT for all numbers has the tags of the models that were tracked before",
        "freshness/dependencies.py",
        "        if self._tables is not tables():\n",
        "        if False:\n",
        "test_compiler.py::test_a_select_is_compiled_again_after_the_tracked_models_have_changed",
    ),
)
