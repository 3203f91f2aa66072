"""Sabotages of the fast path, which answers hits before Django."""

from tests.sabotages import Sabotage

FILE = "freshness/fast_path.py"

FAST_PATH = (
    *(
        Sabotage(what, FILE, old, new, spec)
        for what, old, new, spec in (
            (
                "a header that a middleware looks up is no part of the request",
                """            self.names.add(name)
        return super().get(name, default)""",
                "            pass\n        return super().get(name, default)",
                "test_fast_path.py::test_a_header_that_a_middleware_reads_is_part_of_the_request",
            ),
            (
                "a read of one name is not noticed",
                """        self.names.add(name)
        return super().__getitem__(name)""",
                "        return super().__getitem__(name)",
                "test_learning.py::test_a_read_of_one_name_is_noticed[[]]",
            ),
            (
                "a list of all names is not noticed",
                'for _method in ("__iter__", ',
                "for _method in (",
                "test_learning.py::test_a_read_of_the_whole_environment_is_noticed[iter]",
            ),
            (
                "a response that depends on all headers is learned",
                " or given.is_read_whole or",
                " or",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[headers]",
            ),
            (
                "a cookie is learned",
                'known == "set-cookie" or ',
                "",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[cookie]",
            ),
            (
                "a response that depends on a session is learned",
                ' or (known == "vary" and _varies(value))',
                "",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[session]",
            ),
            (
                "a body that a middleware has changed is learned",
                ' or response.content != (found.body or b"")',
                "",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[longer]",
            ),
            (
                "an ETag that a middleware has changed is learned",
                'expected = {"etag": found.etag, ',
                "expected = {",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[weaker]",
            ),
            (
                "one response is enough to learn from",
                "is_again = self.seen.get(template.has_body) == template",
                "is_again = True",
                "test_learning.py::test_a_response_that_may_differ_next_time_is_answered_by_django[nonce]",
            ),
            (
                "no request is compared again",
                "min(memory.due, known.due)",
                "known.due",
                "test_learning.py::test_a_middleware_that_answers_differently_is_noticed_within_a_second",
            ),
            (
                "a request is compared only if it is the first of its second",
                "min(memory.due, known.due)",
                "memory.due",
                "test_learning.py::test_each_request_is_compared_again_after_its_lifetime",
            ),
            (
                "a difference empties nothing",
                "self.forget(LIFETIME)",
                "pass",
                "test_learning.py::test_a_middleware_that_answers_differently_is_noticed_within_a_second",
            ),
            (
                "a difference is learned at once",
                "self.forget(LIFETIME)",
                "self.forget()",
                "test_learning.py::test_after_a_difference_django_answers_for_a_minute",
            ),
            (
                "a miss counts as a difference",
                "if lesson.found is not None and not lesson.found.is_plain_hit:",
                "if False:",
                "test_learning.py::test_a_miss_is_no_difference",
            ),
            (
                "If-Match is answered before Django",
                ' and "HTTP_IF_MATCH" not in environ',
                "",
                "test_fast_path.py::test_a_request_with_a_body_or_if_match_is_answered_by_django[parts2]",
            ),
            (
                "a request with a body is answered before Django",
                'environ.get("CONTENT_LENGTH") in (None, "", "0") and ',
                "",
                "test_fast_path.py::test_a_request_with_a_body_or_if_match_is_answered_by_django[parts0]",
            ),
            (
                "a view that may do more is skipped",
                "found is None or not lesson.is_skippable or",
                "found is None or",
                "test_learning.py::test_a_view_that_overrides_a_hook_is_called_for_each_hit_unless_it_says_otherwise",
            ),
            (
                "a receiver of the signals is skipped",
                " or _others_listen():",
                ":",
                "test_learning.py::test_a_receiver_of_the_signals_of_a_request_is_called_for_each_hit",
            ),
            (
                "a request of any length is kept",
                " and sum(len(str(value)) for value in values.values()) <= LONGEST",  # plain-words: code
                "",
                "test_learning.py::test_a_long_request_is_not_kept",
            ),
            ("any number of lists of parts is kept", "and len(self.parts) >= KINDS:", "and False:", "test_learning.py::test_few_lists_of_parts_are_kept"),
            (
                "hits are answered before the toolbar",
                "if not conf.FAST_PATH or settings.DEBUG:",
                "if not conf.FAST_PATH:",
                "test_learning.py::test_it_is_off_if_a_setting_or_debug_or_an_unknown_middleware_says_so[changed1]",
            ),
            (
                "it cannot be switched off",
                "if not conf.FAST_PATH or settings.DEBUG:",
                "if settings.DEBUG:",
                "test_learning.py::test_it_is_off_if_a_setting_or_debug_or_an_unknown_middleware_says_so[changed0]",
            ),
            (
                "an unknown middleware is skipped",
                "        return not missed",
                "        return True",
                "test_learning.py::test_it_is_off_if_a_setting_or_debug_or_an_unknown_middleware_says_so[changed2]",
            ),
            (
                "a miss that no view takes keeps others waiting",
                "if self.look and not self.is_taken and isinstance(self.look[2], Miss):",
                "if False:",
                "test_fast_path.py::test_a_miss_that_no_view_takes_is_abandoned",
            ),
            (
                "a lookup that failed is tried again",
                "            self.error = error",
                "            self.error = None",
                "test_fast_path.py::test_without_redis_a_known_request_looks_up_once_and_is_answered_from_the_database",
            ),
            (
                "a second look is that of a moment ago",
                "        self.is_taken = True\n",
                "",
                "test_fast_path.py::test_a_look_that_is_taken_once_is_not_taken_again",
            ),
            ("hits before Django are not counted", "if conf.METRICS_TOKEN:", "if False:", "test_fast_path.py::test_hits_before_django_are_counted"),
            (
                "an error of the fast path costs the response",
                """        except Exception:
            logger.exception("A request""",
                """        except ZeroDivisionError:
            logger.exception("A request""",
                "test_learning.py::test_an_error_of_the_fast_path_is_logged_and_django_answers",
            ),
            (
                "an error in the comparison costs the response",
                """        except Exception:
            logger.exception("Nothing""",
                """        except ZeroDivisionError:
            logger.exception("Nothing""",
                "test_learning.py::test_an_error_of_the_fast_path_is_logged_and_django_answers",
            ),
            (
                "the server does not see what Django has changed",
                "        if given is not environ:",
                "        if False:",
                "test_learning.py::test_the_server_sees_what_django_has_changed_in_the_environment",
            ),
            (
                "each browser makes another request",
                'if not (name == "HTTP_USER_AGENT" and _is_unused(sys._getframe(1))):',
                "if True:",
                "test_fast_path.py::test_requests_that_differ_in_unread_headers_are_equal",
            ),
            (
                "a browser that is refused gets the page of another",
                " and not settings.DISALLOWED_USER_AGENTS",
                "",
                "test_fast_path.py::test_a_refused_browser_is_refused_after_an_accepted_one",
            ),
            (
                "a setting that changes leaves the memory as it is",
                "setting_changed.connect(forget_everything)",
                "",
                "test_fast_path.py::test_a_setting_that_changes_empties_the_memory",
            ),
            (
                "a 304 has the body of the page",
                "headers, found.body or b",
                'headers, found.body or b"{}" or b',
                "test_fast_path.py::test_a_client_that_has_the_page_gets_304_before_django",
            ),
            (
                "a first 304 is looked up again",
                "known.templates.get(found.body is not None)) is None:\n            return None",
                "known.templates.get(found.body is not None)) is None:\n            lesson.ahead = None\n            return None",
                "test_learning.py::test_a_hit_that_has_no_template_is_not_looked_up_again",
            ),
        )
    ),
    Sabotage(
        "a miss that was found before Django is looked up again",
        "freshness/views.py",
        "ahead.take if ahead else None",  # plain-words: code
        "None",
        "test_fast_path.py::test_a_saved_price_is_in_the_next_read",
    ),
    Sabotage(
        "a look before Django makes a reader wait although nobody may",
        "freshness/entries.py",
        "        deadline = monotonic() + conf.LONGEST_WAIT\n    database",
        "        deadline = monotonic() + 1\n    database",
        "test_fast_path.py::test_a_look_before_django_waits_no_longer_than_that_of_a_view",
    ),
    Sabotage(
        "a decorated view is skipped",
        "freshness/views.py",
        'getattr(function, "skippable", None) is function',
        'hasattr(function, "skippable")',
        "test_learning.py::test_a_decorated_view_is_called_for_each_hit",
    ),
    Sabotage(
        "only a view that asks for it is skipped",
        "freshness/views.py",
        'each.__module__.startswith(("django.", "rest_framework."))]',
        'each.__module__.startswith("rest_framework.")]',
        "test_learning.py::test_a_view_that_overrides_no_hook_is_answered_before_django",
    ),
    Sabotage(
        "a view that overrides a hook is skipped",
        "freshness/views.py",
        "if cls.skippable or not _own_hooks(cls, initkwargs):",
        "if True:",
        "test_learning.py::test_a_view_that_overrides_a_hook_is_called_for_each_hit_unless_it_says_otherwise",
    ),
    Sabotage(
        "a read inside a transaction is answered before Django",
        "freshness/entries.py",
        "    if connection.reads_the_past:",
        "    if False:",
        "test_fast_path.py::test_a_read_inside_a_transaction_goes_on_to_django",
    ),
    Sabotage(
        "each client behind a proxy makes another request",
        "wsgi.py",
        "        self.settle(environ)\n",
        "",
        "test_fast_path.py::test_requests_that_differ_in_unread_headers_are_equal",
    ),
    Sabotage(
        "a proxy is taken for the client of another",
        "proxies.py",
        "    if SETTLED in given:",
        "    if False:",
        "test_fast_path.py::test_each_request_for_a_cached_page_gets_the_response_of_django",
    ),
    Sabotage(
        "a server gets Django without the fast path",
        "wsgi.py",
        "application = Service()",
        "application = Application()",
        "test_fast_path.py::test_a_server_gets_the_fast_path",
    ),
)
