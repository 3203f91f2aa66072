"""Sabotages of what is safe by default, of what several processes have in common, and of what only a cached page, another page or another row shows."""

from tests.sabotages import Sabotage

SAFETY = (
    Sabotage(
        "without debug, every service without a key has the same one",
        "settings.py",
        '("debug only" if DEBUG else "")',  # plain-words: code
        '"debug only"',
        "test_setup.py::test_without_debug_the_service_needs_a_secret_key_to_start",
    ),
    Sabotage(
        "debug is on unless the environment turns it off",
        "environment.py",
        'For this machine only", "false")',
        'For this machine only", "true")',
        "test_safety.py::test_debug_is_off_and_no_host_is_allowed_unless_the_environment_says_otherwise",
    ),
    Sabotage(
        "without debug, every host is allowed",
        "settings.py",
        "if DEBUG else [])\n\nRTF",  # plain-words: code
        'if DEBUG else ["*"])\n\nRTF',  # plain-words: code
        "test_safety.py::test_debug_is_off_and_no_host_is_allowed_unless_the_environment_says_otherwise",
    ),
    Sabotage(
        "`make run` gives every folder the same secret key",
        "run.py",
        '"secret": secrets.token_urlsafe(50)',
        '"secret": "abcdefghijklmnopqrstuvwxyz0123456789"',
        "test_safety.py::test_every_folder_gets_its_own_secret_key",
    ),
    Sabotage(
        "every admin has the same password",
        "run.py",
        "password = secrets.token_urlsafe(12)",
        'password = "correct-horse-battery"',
        "test_safety.py::test_every_admin_gets_their_own_password",
    ),
    Sabotage(
        "`make up` gives every folder the same secrets",
        "../Makefile",
        "od -An -N32 -tx1 /dev/urandom",
        "printf '%064d' 7",
        "test_safety.py::test_containers_get_secrets_of_their_own_that_only_the_owner_can_read",
    ),
    Sabotage(
        "everybody on the machine can read the secrets of `make up`",
        "../Makefile",
        "umask 077 && ",
        "",
        "test_safety.py::test_containers_get_secrets_of_their_own_that_only_the_owner_can_read",
    ),
    Sabotage(
        "`make run` listens on every address",
        "run.py",
        '"runserver", f"{HOST}:{port}"]',
        '"runserver", f"0.0.0.0:{port}"]',
        "test_safety.py::test_make_run_listens_on_loopback_only",
    ),
    Sabotage(
        "`make run` and its fakeredis listen on every address",
        "run.py",
        'HOST = "127.0.0.1"',
        'HOST = "0.0.0.0"',
        "test_safety.py::test_the_fakeredis_of_make_run_listens_where_its_url_says",
    ),
    Sabotage(
        "fakeredis listens on every address, whatever its URL says",
        "run.py",
        "TcpFakeServer(address)",
        'TcpFakeServer(("0.0.0.0", address[1]))',
        "test_safety.py::test_the_fakeredis_of_make_run_listens_where_its_url_says",
    ),
    Sabotage(
        "cookies are sent without TLS",
        "settings.py",
        "SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG",
        "SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = False",
        "test_safety.py::test_a_cookie_is_sent_over_https_only",
    ),
    *(
        Sabotage(
            f"{middleware.rpartition('.')[2]} is not installed",
            "settings.py",
            f'    "{middleware}",\n',
            "",
            "test_safety.py::test_the_only_security_checks_of_django_that_fail_are_those_of_the_proxy_in_front",
        )
        for middleware in (
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        )
    ),
    Sabotage(
        "Policies is not installed",
        "settings.py",
        '    "housing.policies.Policies",\n',
        "",
        "test_safety.py::test_every_middleware_can_be_imported_and_the_protecting_ones_are_there",
    ),
    Sabotage(
        "other sites of the same origin may frame a page",
        "policies.py",
        'return "DENY"',
        'return "SAMEORIGIN"',
        "test_safety.py::test_a_response_has_the_headers_that_protect_its_reader",
    ),
    Sabotage(
        "a short password is accepted",
        "settings.py",
        '("MinimumLengthValidator", "CommonPasswordValidator")',
        '("CommonPasswordValidator", "CommonPasswordValidator")',
        "test_safety.py::test_a_weak_password_is_refused",
    ),
    Sabotage(
        "the service of Compose is published on every address",
        "../docker-compose.yml",
        '["127.0.0.1:${PORT:-8000}:8000"]',
        '["${PORT:-8000}:8000"]',
        "test_safety.py::test_only_the_service_and_its_proxy_are_published_and_only_on_this_machine_by_default",
    ),
    Sabotage(
        "the network of PostgreSQL and Redis has a way out",
        "../docker-compose.yml",
        "internal: true",
        "internal: false",
        "test_safety.py::test_only_the_service_and_its_proxy_are_published_and_only_on_this_machine_by_default",
    ),
    Sabotage(
        "the service's container can be written",
        "../docker-compose.yml",
        "networks: [inside, outside]\n  read_only: true",
        "networks: [inside, outside]\n  read_only: false",
        "test_safety.py::test_a_container_has_no_more_rights_than_it_needs",
    ),
    Sabotage(
        "the service's container keeps its capabilities",
        "../docker-compose.yml",
        "heartbeats\n  cap_drop: [ALL]\n",
        "heartbeats\n  cap_drop: []\n",
        "test_safety.py::test_a_container_has_no_more_rights_than_it_needs",
    ),
    Sabotage(
        "the service runs as root",
        "../Dockerfile",
        "USER housing\n",
        "",
        "test_safety.py::test_a_container_has_no_more_rights_than_it_needs",
    ),
    Sabotage(
        "the Redis of Compose may evict the journal",
        "../docker-compose.yml",
        "--maxmemory-policy, volatile-lru]",
        "--maxmemory-policy, allkeys-lru]",
        "test_safety.py::test_the_redis_of_compose_evicts_entries_before_the_journal_and_keeps_nothing_on_disk",
    ),
    Sabotage(
        "the service starts before the database is migrated",
        "../docker-compose.yml",
        "prepare: {condition: service_completed_successfully}",
        "prepare: {condition: service_started}",
        "test_safety.py::test_containers_start_in_order_and_again_after_a_crash",
    ),
    *(
        Sabotage(
            f"gunicorn.conf.py has {new}",
            "../gunicorn.conf.py",
            old,
            new,
            "test_safety.py::test_every_setting_of_gunicorn_is_written_down_with_its_reason",
        )
        for old, new in {
            "threads = 4": "threads = 40",
            'worker_class = "gthread"': 'worker_class = "sync"',
            "preload_app = True": "preload_app = False",
            "keepalive = 15": "keepalive, timeout = 15, 0",
        }.items()
    ),
    Sabotage(
        "gunicorn has one worker, however many cores there are",
        "../gunicorn.conf.py",
        "or os.cpu_count() or 1",
        "or 1",
        "test_safety.py::test_gunicorn_has_one_worker_for_each_core_unless_the_environment_says_otherwise",
    ),
    *(
        Sabotage(
            f"{file} keeps every query string in memory",
            file,
            "@lru_cache(maxsize=KEPT)",
            "@lru_cache(maxsize=None)",
            "test_safety.py::test_no_client_can_fill_the_memory_of_a_process",
        )
        for file in ("filters.py", "views.py")
    ),
    Sabotage(
        "the admin writes past `save()`",
        "admin.py",
        "    inlines = [PropertyImageInline]\n",
        "    inlines = [PropertyImageInline]\n"
        "    save_model = lambda self, request, row, form, change: Property.objects.filter(pk=row.pk).update(title=row.title)\n",
        "test_safety.py::test_the_admin_saves_a_row_with_its_save_method",
    ),
    # Several processes
    *(
        Sabotage(what, file, old, new, "test_keys.py::test_two_processes_give_equal_things_the_same_name")
        for what, file, old, new in (
            (
                "an ETag depends on the process",
                "freshness/entries.py",
                "hashlib.sha256(body).hexdigest()",
                "hashlib.sha256(str(hash(body)).encode()).hexdigest()",
            ),
            ("seeded rows depend on the process", "management/commands/seed.py", "Random(2026)", 'Random(hash("2026"))'),
            (
                "the hash of an imported row depends on the process",
                "management/commands/import_listings.py",
                "json.dumps(cells, sort_keys=True).encode()",
                'b"%d" % hash(json.dumps(cells, sort_keys=True))',
            ),
            ("a cursor depends on the process", "filters.py", 'salt="housing.cursor"', 'salt=str(hash("housing.cursor"))'),
        )
    ),
    Sabotage(
        "a process keeps a copy of each office until it changes one itself",
        "serializers.py",
        "        return _shape(list(serializer.fields), places, replaced)\n",
        "        shown, kept, first = _shape(list(serializer.fields), places, replaced), {}, len(self.paths) - 3\n"
        "        return lambda columns: ['office' in prefix and kept.setdefault(*row) or row[1] for row in zip(columns[first], shown(columns))]\n",
        "test_setup.py::test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache",
    ),
    # Another page, a hit, another row
    Sabotage(
        "a HEAD has no ETag",
        "freshness/views.py",
        '| {"ETag": found.etag}',
        '| ({"ETag": found.etag} if request.method == "GET" else {})',  # plain-words: code
        "test_contract.py::test_head_returns_the_status_and_every_header_of_a_get_without_a_body",
    ),
    Sabotage(
        "the next link of the cached variant repeats unknown parameters",
        "views.py",
        "            return rendered(page.body(COLUMNS",
        '            object.__setattr__(page, "next", page.next and page.next + "&" * ("utm" in request.GET.urlencode()) + request.GET.get("utm_source", ""))\n'
        "            return rendered(page.body(COLUMNS",
        "test_cursors.py::test_links_are_relative_and_contain_only_the_parameters_that_matter",
    ),
    Sabotage(
        "a cursor has no microseconds",
        "filters.py",
        '"created_at": datetime.datetime.fromisoformat',
        '"created_at": lambda text: datetime.datetime.fromisoformat(text).replace(microsecond=0)',
        "test_cursors.py::test_a_cursor_keeps_the_smallest_difference_between_two_rows",
    ),
    Sabotage(
        "a cursor has no cents",
        "filters.py",
        '"price": Decimal}',
        '"price": lambda text: Decimal(text).to_integral_value()}',
        "test_cursors.py::test_a_cursor_keeps_the_smallest_difference_between_two_rows",
    ),
    Sabotage(
        "the hash of an imported row joins its cells",
        "management/commands/import_listings.py",
        "json.dumps(cells, sort_keys=True).encode()",
        '"".join(cells[name] for name in sorted(cells)).encode()',
        "test_import.py::test_two_rows_with_the_same_text_in_other_cells_are_two_properties",
    ),
    Sabotage(
        "the eleventh of equal imported rows is taken for the first",
        "management/commands/import_listings.py",
        "str(times).encode()",
        "str(times)[-1:].encode()",
        "test_import.py::test_duplicate_rows_become_separate_properties_and_are_recognized_in_the_next_import",
    ),
    Sabotage(
        "each attempt of a raced reader waits as long as the first",
        "freshness/entries.py",
        "deadline = began + (conf.LONGEST_WAIT if attempts == 1 else conf.WAIT_TIMEOUT)",  # plain-words: code
        "deadline = monotonic() + (conf.LONGEST_WAIT if attempts == 1 else conf.WAIT_TIMEOUT)",  # plain-words: code
        "test_waiting.py::test_a_reader_that_is_raced_waits_no_longer_than_one_wait_timeout_in_all",
    ),
    *(
        Sabotage(f"a number nobody wrote down: {new}", file, old, new, "test_spec.py::test_every_number_of_the_code_is_written_down_with_its_reason")
        for file, old, new in (
            ("freshness/entries.py", "ATTEMPTS = 3", "ATTEMPTS = 4"),
            ("freshness/requests.py", "KNOWN = 100", "KNOWN = 1000"),
            ("freshness/settings.py", '"LEASE": Setting(5.0', '"LEASE": Setting(50.0'),
            ("health.py", "DEADLINE = 0.5", "DEADLINE = 5.0"),
        )
    ),
    *(
        Sabotage(
            f"{word} counts as a statement that writes no row",
            "freshness/statements.py",
            "    | DECLARE | FETCH",
            f"    | {word} | DECLARE | FETCH",
            "test_statements.py::test_every_other_statement_in_the_grammars_of_both_databases_is_a_write",
        )
        for word in ("EXECUTE", "CLUSTER", "SECURITY", "REASSIGN", "LOAD", "DETACH")
    ),
    Sabotage(
        "PREPARE counts as a write, although nothing runs",
        "freshness/statements.py",
        "CLOSE | PREPARE | DEALLOCATE",
        "CLOSE | DEALLOCATE",
        "test_statements.py::test_every_other_statement_in_the_grammars_of_both_databases_is_a_write",
    ),
    *(
        Sabotage(what, "freshness/statements.py", old, new, "test_statements.py::test_a_write_in_a_with_clause_is_seen_wherever_the_clause_stands")
        for what, old, new in (
            ("an INSERT in the WITH clause of a write is not seen", r"\bWITH\b.*\b(?:INSERT|", r"\bWITH\b.*\b(?:"),
            ("COPY of a WITH clause counts as an export", "(?:SELECT|VALUES|TABLE)\\b )", "(?:SELECT|VALUES|TABLE|WITH)\\b )"),
        )
    ),
)
