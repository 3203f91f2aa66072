"""Sabotages of the process that serves."""

from tests.sabotages import Sabotage

CHAPTER = "test_worker.py::test_"
ACCESS = "test_access_log.py::test_"
RECORD = f"{ACCESS}a_record_has_all_that_logging_gives_it"
SLOW = f"{CHAPTER}64_clients_that_never_finish_a_request_keep_no_thread[a form]"
REFUSED = f"{CHAPTER}a_request_that_no_client_of_good_will_sends_is_refused_before_the_application"

WORKER = tuple(
    Sabotage(f"worker: {what}", file, old, new, spec)
    for what, file, old, new, spec in (
        ("a thread waits for a form", "worker.py", "environ, began), self.loop)", "environ, began), self.loop).result()", SLOW),
        (
            "gunicorn's own worker serves",
            "../gunicorn.conf.py",
            'worker_class = "housing.worker.Granian"',
            'worker_class = "gthread"',
            f"{CHAPTER}hits_and_logins_are_answered_beside_64_slow_clients",
        ),
        (
            "a body may take for ever",
            "worker.py",
            "asyncio.timeout(PATIENCE)",
            "asyncio.timeout(None)",
            f"{CHAPTER}a_client_that_does_not_send_its_body_gets_408_and_a_closed_connection",
        ),
        (
            "headers may take for ever",
            "worker.py",
            "header_read_timeout=self.cfg.keepalive * 1000",
            "header_read_timeout=3_600_000",
            f"{CHAPTER}a_client_that_does_not_send_its_headers_is_disconnected",
        ),
        (
            "any number of bodies is read",
            "worker.py",
            "if self.forms >= FORMS",
            "if self.forms < 0",
            f"{CHAPTER}the_bodies_that_a_process_reads_at_once_are_bounded",
        ),
        ("granian waits for a body", "worker.py", "    watcher.done()  #", "    #", f"{CHAPTER}granian_learns_that_a_request_is_done"),
        ("an underscore passes for a hyphen", "asgi.py", 'if "_" in name:', "if not name:", f"{CHAPTER}no_header_passes_for_another_one"),
        ("a path of any length", "worker.py", "> self.cfg.limit_request_line:", "> 10**9:", f"{REFUSED}[a long path]"),
        ("headers of any length", "worker.py", "max_buffer_size=LONGEST_HEAD", "max_buffer_size=10**6", f"{REFUSED}[a long header]"),
        ("a path without a slash is the home page", "worker.py", 'startswith((b"/", b"*"))', 'startswith(b"")', f"{REFUSED}[no slash]"),
        (
            "HEAD has a body",
            "worker.py",
            'environ["REQUEST_METHOD"] == "HEAD"',
            'environ["REQUEST_METHOD"] == "TRACE"',
            f"{CHAPTER}head_reaches_granian_without_a_body",
        ),
        (
            "one more thread responds",
            "worker.py",
            '"py_threads": self.cfg.threads,',
            '"py_threads": self.cfg.threads + 1,',
            f"{CHAPTER}at_most_four_threads_respond_and_they_are_always_the_same",
        ),
        (
            "a second request waits for the first one",
            "worker.py",
            "                self.leave_a_thread(watcher)\n",
            "",
            f"{CHAPTER}the_first_requests_of_a_process_have_a_thread_each",
        ),
        ("a process ends before its threads", "worker.py", "        self.outlive(others)\n", "", f"{CHAPTER}a_process_ends_after_the_threads_of_granian"),
        (
            "an old error keeps the threads",
            "worker.py",
            "        gc.collect()  #",
            "        #",
            f"{CHAPTER}a_process_ends_at_once_although_an_old_error_still_exists",
        ),
        (
            "a thread that has called Python is forgotten",
            "worker.py",
            " if not isinstance(thread, threading._DummyThread)",
            "",
            f"{CHAPTER}a_process_knows_the_threads_of_granian",
        ),
        (
            "a process waits for ever for its threads",
            "worker.py",
            "if time.monotonic() >= end:",
            "if time.monotonic() < 0:",
            f"{CHAPTER}a_process_does_not_wait_long_for_a_thread_of_granian",
        ),
        (
            "a thread ends after a while",
            "worker.py",
            "FOR_EVER = 2_147_483_648",
            "FOR_EVER = 30",
            f"{CHAPTER}at_most_four_threads_respond_and_they_are_always_the_same",
        ),
        (
            "an idle connection is closed without a word",
            "worker.py",
            "            headers.append(CLOSE)\n",
            "            pass\n",
            f"{CHAPTER}a_request_that_has_begun_is_answered_when_the_process_ends",
        ),
        (
            "a process ends at once",
            "worker.py",
            "        await asyncio.sleep(DRAIN)\n",
            "",
            f"{CHAPTER}a_process_that_ends_still_accepts_requests_for_a_moment",
        ),
        ("a process lives without its parent", "worker.py", " and os.getppid() == self.ppid", "", f"{CHAPTER}a_process_without_its_parent_ends"),
        (
            "a process that hangs gives signs of life",
            "worker.py",
            "if len(begun) < self.cfg.threads or max(begun) > self.last_sign:",
            "if True:",
            f"{CHAPTER}a_process_whose_threads_all_hang_gives_no_sign_of_life",
        ),
        (
            "an unexpected error is a 500",
            "worker.py",
            "pass_on(watcher, 503,",
            "pass_on(watcher, 500,",
            f"{CHAPTER}an_unexpected_error_is_a_503_and_a_line_in_the_log",
        ),
        (
            "a second response to a request is an error",
            "worker.py",
            "with suppress(Exception):",
            "with suppress(OSError):",
            f"{CHAPTER}an_error_after_the_response_changes_nothing",
        ),
        (
            "the access log has no id",
            "worker.py",
            'environ.get("HTTP_X_REQUEST_ID", "-")',
            'environ.get("HTTP_X_ID", "-")',
            f"{ACCESS}the_access_log_has_a_line_for_each_request[-/a%20b]",
        ),
        (
            "a quote ends the quotes",
            "worker.py",
            'text.replace(\'"\', r"\\"")',
            "text",
            f"{ACCESS}a_quote_of_a_client_does_not_end_the_quotes_of_a_line",
        ),
        ("a name has one case", "worker.py", "self.get(name.lower(),", "self.get(name,", f"{ACCESS}the_format_may_have_any_name_of_gunicorns"),
        ("a line has the time of the first one", "worker.py", "args=atoms, created=now,", "args=atoms,", RECORD),
        ("a line has the thread of the first one", "worker.py", "FIRST = threading.local()", 'FIRST = type("", (), {})()', RECORD),
        (
            "a record has the trace of an earlier request",
            "worker.py",
            "custom = logging.getLogRecordFactory() is not logging.LogRecord",
            "custom = False",
            f"{ACCESS}a_factory_of_records_makes_each_one",
        ),
        (
            "a level is ignored",
            "worker.py",
            " and self.log.access_log.isEnabledFor(logging.INFO)",
            "",
            f"{ACCESS}a_level_above_info_silences_the_access_log",
        ),
        (
            "one of two addresses is served",
            "worker.py",
            "len(cfg.address) != 1 or",
            "",
            f"{CHAPTER}a_second_address_and_tls_are_refused_at_the_start[options0]",
        ),
        (
            "the threads of forms have no name",
            "worker.py",
            ', thread_name_prefix="form")',
            ")",
            f"{CHAPTER}a_form_is_answered_while_every_thread_is_busy",
        ),
    )
)
