"""Sabotages of the cached view and of what it may read of a request, in a project that has copied the engine."""

from tests.sabotages import Sabotage

VIEWS = (
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
