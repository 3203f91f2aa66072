"""Sabotages of the environment variables and of DATABASE_URL."""

from tests.sabotages import Sabotage

HOSTILE = "test_environment.py::test_every_variable_uses_a_hostile_value_or_refuses_it_in_one_line_without_it"
MEANT = "test_environment.py::test_a_value_is_used_as_it_is_meant"
PARTS = "test_environment.py::test_every_part_of_a_database_url_reaches_the_settings"
REFUSED = "test_environment.py::test_a_database_url_that_cannot_work_is_refused_with_the_reason"
DEFAULTS = "test_environment.py::test_an_option_of_the_url_goes_before_the_default_of_the_service"

ENVIRONMENT = (
    Sabotage(
        "environment: a dollar sign refers to another variable",
        "environment.py",
        'return unquoted(os.environ.get(name, ""))',
        'return unquoted(os.path.expandvars(os.environ.get(name, "").replace("$e", "$HOME")))',
        f"{MEANT}[DJANGO_SECRET_KEY-$ecret-$ecret]",
    ),
    Sabotage("environment: a space stays in a list", "environment.py", 're.split(r"[,\\s]+", text)', 'text.split(",")', MEANT),
    Sabotage("environment: a list as JSON is one host", "environment.py", "        text = text[1:-1]\n", "        pass\n", MEANT),
    Sabotage(
        "environment: a message shows the value",
        "environment.py",
        'raise ImproperlyConfigured(f"{name} {why}")',
        'raise ImproperlyConfigured(f"{name}={text} {why}")',
        f"{HOSTILE}[DJANGO_DEBUG]",
    ),
    Sabotage(
        "environment: a traceback shows the error with the value",
        "environment.py",
        "        why = str(wrong)\n",
        "        why = str(wrong)\n        raise ImproperlyConfigured(f'{name} {why}')\n",
        f"{HOSTILE}[DJANGO_DEBUG]",
    ),
    Sabotage(
        "environment: an unknown word is false",
        "environment.py",
        '_require(text.lower() in SWITCHES, "is neither true nor false.")\n    return SWITCHES[text.lower()]',
        "return SWITCHES.get(text.lower(), False)",
        "test_environment.py::test_every_variable_refuses_a_control_character[DJANGO_DEBUG]",
    ),
    Sabotage(
        "environment: an empty variable is a value",
        "environment.py",
        'unquoted(os.environ.get(name, "")) or VARIABLES[name].default',
        "unquoted(os.environ.get(name, VARIABLES[name].default))",
        "test_environment.py::test_an_empty_variable_counts_as_absent[REDIS_URL-]",
    ),
    Sabotage(
        "environment: a host with a port is accepted",
        "environment.py",
        'r"\\.?[a-zA-Z0-9_-]+(\\.[a-zA-Z0-9_-]+)*"',
        'r"\\.?[a-zA-Z0-9_:-]+(\\.[a-zA-Z0-9_:-]+)*"',
        "test_environment.py::test_a_host_that_no_request_can_have_is_refused[a.example:8000]",
    ),
    Sabotage(
        "environment: gunicorn finds a wrong value in its workers",
        "../gunicorn.conf.py",
        "for name in VARIABLES}",
        'for name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "HEALTH_BIND")}',
        "test_environment.py::test_gunicorn_checks_every_variable_before_it_starts",
    ),
    Sabotage(
        "environment: a variable is not in the documentation",
        "environment.py",
        '    "WEB_CONCURRENCY": Variable(',
        '    "A_NEW_ONE": Variable(switch, "does something"),\n    "WEB_CONCURRENCY": Variable(',
        "test_environment.py::test_the_table_of_variables_in_the_documentation_is_the_registry",
    ),
    Sabotage(
        "environment: a variable is read elsewhere",
        "settings.py",
        'SECRET_KEY = read("DJANGO_SECRET_KEY")',
        'SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY")',
        "test_environment.py::test_no_other_code_reads_a_variable",
    ),
    Sabotage(
        "environment: an empty folder of metrics is the current one",
        "settings.py",
        '    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)',
        "    pass",
        "test_environment.py::test_an_empty_folder_of_metrics_is_no_folder",
    ),
    Sabotage("DATABASE_URL: conn_max_age is overwritten", "settings.py", '"CONN_HEALTH_CHECKS": True} | chosen', '"CONN_HEALTH_CHECKS": True}', DEFAULTS),
    Sabotage("DATABASE_URL: a pool keeps connections in threads", "database_url.py", '"CONN_MAX_AGE", 0) == 0', '"CONN_MAX_AGE", None) or True', PARTS),
    Sabotage("DATABASE_URL: false is true", "database_url.py", '"false": False, "0": False}', '"false": True, "0": True}', PARTS),
    Sabotage(
        "DATABASE_URL: a password with a hash hides the host",
        "database_url.py",
        '_require(not parts.fragment and "@"',
        '_require("@"',
        f"{REFUSED}[a password with a hash]",
    ),
    Sabotage(
        "DATABASE_URL: a password with a question mark hides the host",
        "database_url.py",
        '"@" not in parts.path + parts.query',
        '"@" not in parts.path',
        f"{REFUSED}[a password with a question mark]",
    ),
    Sabotage(
        "DATABASE_URL: what libpq refuses is found at the first request",
        "database_url.py",
        "_require(NOWHERE in attempt.",
        "_require(True or NOWHERE in attempt.",
        f"{REFUSED}[a value that libpq refuses]",
    ),
    Sabotage(
        "DATABASE_URL: an option that libpq does not have is found at the first request",
        "database_url.py",
        "_require(options.keys() <= known,",
        "_require(True,",
        f"{REFUSED}[an option of another client]",
    ),
    Sabotage(
        "DATABASE_URL: a plus in a path is a space",
        "database_url.py",
        'path = unquote(parts.path.removeprefix("/"))\n    _require(not parts.netloc',
        'path = unquote(parts.path.removeprefix("/")).replace("+", " ")\n    _require(not parts.netloc',
        PARTS,
    ),
    Sabotage("DATABASE_URL: a message shows the URL", "database_url.py", 'f"DATABASE_URL {what}. Use', 'f"DATABASE_URL {what} ({SETTINGS}). Use', REFUSED),
    Sabotage(
        "a service of libpq is refused where it is not defined",
        "database_url.py",
        '("service", "passfile", ',
        '("passfile", ',
        "test_environment.py::test_every_part_of_a_database_url_reaches_the_settings[postgres://h/x?service=of_this_machine-parts12]",
    ),
)
