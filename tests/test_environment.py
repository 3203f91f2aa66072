"""The environment variables as people write them. A value is used as it is meant, or refused at start in one line that names the variable.

The specs walk the registry in `housing/environment.py`, which is the only place where variables are read. docs/deploying.md has its table.
"""

import json
import os
import re
import runpy
from itertools import takewhile
from unittest.mock import patch

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from housing.database_url import SETTINGS, database
from housing.environment import VARIABLES, read
from tests import ROOT
from tests.fixtures.processes import new_folder_in, python

SECRET = "s3cr3t"
"""A part of each hostile value that looks like a password."""

# Each variable with each value

POSTGRES = f"postgres://user:{SECRET}"

HOSTILE = (
    *("", " ", "\t\n", '""', "''", "[]", "[", "{", "}", "(", "=", ",", ",,", ";", "*", "-1", "0", "1", "1.5", "1e9", "NaN", "0x10", "99999999999999999999"),
    *("null", "None", "true", "TRUE", "maybe", "²", "é", "\N{SNOWMAN}", "\udcff", "\x7f", f"{SECRET}\a", f"{SECRET}\nX: y", f"{SECRET}\r", "x" * 100_000),
    *(f"${SECRET}", f"${{{SECRET}}}", f"`{SECRET}`", f"%{SECRET}", f"{SECRET}, b", f'["{SECRET}"]', f"['{SECRET}', \"b\"]", f'"{SECRET}', f"{SECRET} #"),
    *(
        f"http://{SECRET}",
        f"https://u:{SECRET}@h/",
        f"//{SECRET}",
        f"://{SECRET}",
        f"{SECRET}:1",
        f":{SECRET}",
        "[::1]",
        "::1",
        "[::1",
        f"[{SECRET}]:1",
        "a:b:c",
    ),
    *(f"{SECRET}@127.0.0.1:5432/x", f"user:{SECRET}@h/x", f"mysql://u:{SECRET}@h/x", f"POSTGRES://u:{SECRET}@h/x", f"postgres:{SECRET}", f"postgres//{SECRET}"),
    *(f"{POSTGRES}{bad}@h/x" for bad in "?/#[]%\\'\" \a"),
    *(f"{POSTGRES}@h:{port}/x" for port in ("", "0", "65536", "x", "-1", "1:2", f"{SECRET}")),
    *(f"{POSTGRES}@{host}/x" for host in ("", ",", "a,", "[::1", "[::1]", "a b", "%2Frun", "%00")),
    *(f"{POSTGRES}@h{path}" for path in ("", "/", "//x", "/x/y", "/%00", "/x y")),
    *(f"{POSTGRES}@h/x?{query}" for query in ("x", "=", "x=", "&", "sslmode=no", "a=1", "pool=x", "timeout=x", "conn_max_age=x", "pool=1&pool=1", SECRET)),
    *(f"sqlite:{path}" for path in ("", "//", "///", "///:memory:", "//:memory:", "//x.db", "///x?y.db", "///x#1.db", "///x?timeout=x", "///x?mode=ro")),
    *(f"redis://:{SECRET}{bad}@h:1/0" for bad in "?/#[],%@"),
    *(f"redis://:{SECRET}@h{rest}" for rest in (":0", ":x", ":65536", "/x", "/0?x=y", "/0?socket_timeout=x", ",b/0")),
)
"""Values that people and scripts have set by mistake."""


@pytest.fixture
def given(monkeypatch):
    """`given(name, text)`: what the service reads from this variable. Raises ImproperlyConfigured."""

    def given(name, text):
        monkeypatch.setitem(os.environ, name, text)
        return read(name)

    return given


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_uses_a_hostile_value_or_refuses_it_in_one_line_without_it(given, name):
    """A traceback would hide which variable to change, and a log that shows the value would show the password in it."""
    for text in HOSTILE:
        try:
            given(name, text)
        except ImproperlyConfigured as refused:
            line = str(refused)
            assert line.startswith(f"{name} "), text
            assert len(line.splitlines()) == 1, text
            assert SECRET not in line, text
            assert len(text) < 12 or text not in line
            assert refused.__context__ is None, f"a traceback would show the value: {text}"


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_refuses_a_control_character(given, name):
    """Nobody means one. It proves that each variable can refuse something."""
    with pytest.raises(ImproperlyConfigured):
        given(name, f"{SECRET}\a")


@pytest.mark.parametrize("empty", ["", "  ", '""', "''\n"])
@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_counts_as_absent(given, monkeypatch, name, empty):
    """Compose and Helm pass on an unset variable as an empty one."""
    monkeypatch.delenv(name, raising=False)
    absent = read(name)

    assert given(name, empty) == absent


@pytest.mark.parametrize("name", sorted({"DJANGO_DEBUG", *(name for name, variable in VARIABLES.items() if variable.parse.__name__ == "switch")}))
def test_every_switch_knows_the_words_that_people_use(given, name):
    """`False` with a capital is Python's, and a switch that takes it for true would show error pages to everybody."""
    assert {text for text in ("true", "True", "TRUE", "1", "yes", "on", " on ") if given(name, text) is not True} == set()
    assert {text for text in ("false", "False", "FALSE", "0", "no", "off", "off\n") if given(name, text) is not False} == set()


MEANT = (
    *(("DJANGO_SECRET_KEY", text, text) for text in ("$ecret", "$DATABASE_URL", "${HOME}", "#1", "a b", "%41", "\\n", "é", "[a", "a'b")),
    ("DJANGO_SECRET_KEY", " padded\n", "padded"),
    ("DJANGO_SECRET_KEY", '"quoted"', "quoted"),
    *(("DJANGO_ALLOWED_HOSTS", text, ["a.example", "b.example"]) for text in ("a.example,b.example", "a.example, b.example", " a.example b.example ")),
    *(
        ("DJANGO_ALLOWED_HOSTS", text, ["a.example", "b.example"])
        for text in ('["a.example", "b.example"]', "['a.example','b.example',]", '"A.example,b.example,"')
    ),
    ("DJANGO_ALLOWED_HOSTS", '["a.example"]', ["a.example"]),
    ("DJANGO_ALLOWED_HOSTS", "*, .a.example, *.b.example, 10.0.0.1", ["*", ".a.example", ".b.example", "10.0.0.1"]),
    ("DJANGO_ALLOWED_HOSTS", "::1,[::2]", ["[::1]", "[::2]"]),
    ("DJANGO_CSRF_TRUSTED_ORIGINS", "https://a.example/, http://b.example:8000", ["https://a.example", "http://b.example:8000"]),
    ("DJANGO_CSRF_TRUSTED_ORIGINS", '["https://*.a.example"]', ["https://*.a.example"]),
    ("FORWARDED_ALLOW_IPS", "10.1.2.3/8, ::1", ["10.0.0.0/8", "::1/128"]),
    ("FORWARDED_ALLOW_IPS", "*", ["*"]),
    ("DJANGO_SECURE_HSTS_SECONDS", " 3600 ", 3600),
    ("DJANGO_API_THROTTLE", " 100/minute", "100/minute"),
    ("DJANGO_LOG_FORMAT", "json", "json"),
    ("WEB_CONCURRENCY", "3", 3),
    ("HEALTH_BIND", "[::1]:8081", ("::1", 8081)),
    ("HEALTH_BIND", "'0.0.0.0:8081'", ("0.0.0.0", 8081)),
    ("PROMETHEUS_MULTIPROC_DIR", "/", "/"),
    ("FRESHNESS_METRICS_TOKEN", "$token", "$token"),
    ("REDIS_URL", '"redis://:p%2F%3F%23@h:1/0" ', "redis://:p%2F%3F%23@h:1/0"),
)
"""(variable, value, as it is meant)"""


@pytest.mark.parametrize(("name", "text", "meant"), MEANT)
def test_a_value_is_used_as_it_is_meant(given, name, text, meant):
    """A list that is written as JSON is a list, and a secret that begins with a dollar sign is no reference to another variable."""
    assert given(name, text) == meant


def test_every_variable_has_an_example_of_a_value_as_it_is_meant():
    """A variable that is new in the registry needs one, too."""
    switches = {name for name, variable in VARIABLES.items() if variable.parse.__name__ == "switch"}
    assert {name for name, _, _ in MEANT} | switches | {"DATABASE_URL"} == VARIABLES.keys()


@pytest.mark.parametrize("text", ["https://a.example", "a.example:8000", "a.example/", "u:p@a.example", "[a.example]", "a..example"])
def test_a_host_that_no_request_can_have_is_refused(given, text):
    """Django compares the name alone, so each request would get 400, and nobody would know why."""
    with pytest.raises(ImproperlyConfigured, match=r"DJANGO_ALLOWED_HOSTS has an entry that is not a host \(number 2\)\. Write each like example\.com"):
        given("DJANGO_ALLOWED_HOSTS", f"b.example,{text}")


# DATABASE_URL

URLS = (
    ("postgres://u:p%3F%2F%23%40@h:5433/x", {"USER": "u", "PASSWORD": "p?/#@", "HOST": "h", "PORT": "5433", "NAME": "x"}),
    ("postgresql://u:p:w@[::1]/a%2Db", {"USER": "u", "PASSWORD": "p:w", "HOST": "::1", "PORT": "", "NAME": "a-b"}),
    ("postgres:///x", {"USER": "", "HOST": "", "NAME": "x"}),
    ("postgres://%2Frun%2Fpostgresql/x", {"HOST": "/run/postgresql", "NAME": "x"}),
    ("postgres:////run/postgresql/x", {"HOST": "/run/postgresql", "NAME": "x"}),
    ("postgres://a:1,b:2/x?target_session_attrs=read-write", {"HOST": "a,b", "PORT": "1,2", "OPTIONS": {"target_session_attrs": "read-write"}}),
    ("postgres://h/x?conn_max_age=60", {"CONN_MAX_AGE": 60}),
    ("postgres://h/x?CONN_MAX_AGE=none&conn_health_checks=false", {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}),
    ("postgres://h/x?timeout=7", {"OPTIONS": {"connect_timeout": 7}}),
    ("postgres://h/x?pool=true&timeout=7", {"CONN_MAX_AGE": 0, "OPTIONS": {"connect_timeout": 7, "pool": {"min_size": 1, "max_size": 10, "timeout": 7}}}),
    ("postgres://h/x?pool=false", {"OPTIONS": {}}),
    ("postgres://h/x?options=-c%20statement_timeout%3D2000", {"OPTIONS": {"options": "-c statement_timeout=2000"}}),
    ("postgres://h/x?service=of_this_machine", {"OPTIONS": {"service": "of_this_machine"}}),
    ("postgres://h/x?disable_server_side_cursors=True", {"DISABLE_SERVER_SIDE_CURSORS": True}),
    ("postgres://h/x?isolation_level=2&prepare_threshold=none", {"OPTIONS": {"isolation_level": 2, "prepare_threshold": None}}),
    ("sqlite:///x%3F%20%231.db", {"NAME": "x? #1.db", "OPTIONS": {}}),
    ("sqlite:////srv/a+b.db?timeout=0.5", {"NAME": "/srv/a+b.db", "OPTIONS": {"timeout": 0.5}}),
    ("sqlite:///x.db?transaction_mode=deferred", {"OPTIONS": {"transaction_mode": "DEFERRED"}}),
)
"""(URL, parts of the settings of Django)"""


@pytest.mark.parametrize(("url", "parts"), URLS)
def test_every_part_of_a_database_url_reaches_the_settings(url, parts):
    """A part that is ignored silently would be found in production."""
    settings = database(url)

    assert {name: settings[name] for name in parts} == parts


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_django_in_a_database_url_is_parsed_or_refused(name):
    """`?conn_health_checks=false` as a text would be true."""
    assert not database(f"postgres://h/x?{name}=0")[name.upper()]
    with pytest.raises(ImproperlyConfigured, match=f"^DATABASE_URL has an invalid value of the option {name}. Use postgres://"):
        database(f"postgres://h/x?{name}={SECRET}")


REFUSED = {
    "a password with a question mark": (f"{POSTGRES}?1@h/x", "contains a character that must be percent-encoded, such as %40 for @."),
    "a password with a slash": (f"{POSTGRES}/1@h/x", "contains a character that must be percent-encoded"),
    "a password with a hash": (f"{POSTGRES}#1@h/x", "contains a character that must be percent-encoded"),
    "a password with a bracket": (f"{POSTGRES}[1@h/x", "contains a character that must be percent-encoded"),
    "a port in words": (f"{POSTGRES}@h:port/x", "has an invalid port"),
    "port 65536": (f"{POSTGRES}@h:65536/x", "has an invalid port"),
    "no scheme": (f"user:{SECRET}@h/x", "does not begin with a supported scheme. Use postgres://"),
    "another scheme": (f"mysql://user:{SECRET}@h/x", "does not begin with a supported scheme. Use postgres://"),
    "no name": (f"{POSTGRES}@h", "has no name of a database"),
    "an option of another client": (f"{POSTGRES}@h/x?ssl=true", "has an option that PostgreSQL's client does not have: ssl"),
    "a value that libpq refuses": (f"{POSTGRES}@h/x?sslmode={SECRET}", "has an invalid value of an option: sslmode"),
    "an option twice": (f"{POSTGRES}@h/x?timeout=1&timeout=2", "has an option twice"),
    "a pool of connections that are kept": (f"{POSTGRES}@h/x?pool=true&conn_max_age=60", "has both pool and conn_max_age"),
    "a file after two slashes": ("sqlite://x.db", "has a host, and a file has none. A path begins after the third slash"),
    "a database in memory": ("sqlite:///:memory:", "has no file, and each connection would have a database of its own in memory"),
    "a file with a question mark": ("sqlite:///x?y.db", "has an option without a name or a value"),
    "an option of another engine": ("sqlite:///x.db?pool=true", "has an option that SQLite does not have"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_database_url_that_cannot_work_is_refused_with_the_reason(what):
    """The error is raised at start instead of at each request."""
    url, why = REFUSED[what]
    with pytest.raises(ImproperlyConfigured, match=f"^DATABASE_URL {re.escape(why)}") as refused:
        database(url)

    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://h/x", [None, True, 2]),
        ("postgres://h/x?conn_max_age=60&timeout=5", [60, True, 5]),
        ("postgres://h/x?pool=true", [0, True, 2]),
        ("sqlite:///x.db?conn_max_age=60&timeout=5", [60, None, 5]),
    ],
)
def test_an_option_of_the_url_goes_before_the_default_of_the_service(url, expected):
    """`?conn_max_age=60` was ignored once, because the service's own setting overwrote it."""
    show = (
        "import json; from housing.settings import DATABASES; d = DATABASES['default']; o = d['OPTIONS'];"
        "print(json.dumps([d.get('CONN_MAX_AGE'), d.get('CONN_HEALTH_CHECKS'), o.get('connect_timeout', o.get('timeout'))]))"
    )
    shown = python("-c", show, DJANGO_SECRET_KEY="any", DATABASE_URL=url)

    assert json.loads(shown.stdout) == expected


@pytest.fixture
def pool(transactional_db):
    """The connections of the service come from a pool, as with `?pool=true`."""
    connection.close()
    pooled = database("postgres://h/x?pool=true")
    options = connection.settings_dict["OPTIONS"] | {"pool": pooled["OPTIONS"]["pool"]}
    with patch.dict(connection.settings_dict, CONN_MAX_AGE=pooled["CONN_MAX_AGE"], OPTIONS=options):
        yield connection
        connection.close()
        connection.close_pool()


@pytest.mark.only("real")
def test_with_a_pool_requests_share_connections_and_no_read_is_stale(pool, home, warm, price, reprice):
    """A hit, a write in the next read, and each request returns its connection. (Real only: SQLite has no connections over a network.)"""
    warm()
    for number in range(20):
        reprice(number)
        assert [price(), price()] == [(f"{number}.00", "fwd=stale; stored"), (f"{number}.00", "hit")]
        connection.close()

    assert pool.pool.get_stats()["connections_num"] <= 2


# At the start

REFUSES = {
    "manage.py": ("manage.py", "check"),
    "make run": ("-m", "housing.run", "--port", "1"),
    "gunicorn": ("-m", "gunicorn", "housing.wsgi", "--bind", "127.0.0.1:0"),
}


@pytest.mark.parametrize("start", REFUSES)
@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_a_value_that_cannot_be_used_ends_every_start_with_one_line(tmp_path, start, name):
    """The last line of a traceback is the first that is cut off in a supervisor's log."""
    folder = new_folder_in(tmp_path)
    (folder / "gunicorn.conf.py").write_bytes((ROOT / "gunicorn.conf.py").read_bytes())
    ended = python(*REFUSES[start], folder=folder, **{"DJANGO_SECRET_KEY": "any", name: f"postgres://{SECRET}#@h/x"})

    assert ended.code == 1
    assert re.fullmatch(f"(Not started: )?{name} [^\n]*\n", ended.stderr)
    assert SECRET not in ended.stderr


def test_gunicorn_checks_every_variable_before_it_starts(monkeypatch):
    """A wrong value would otherwise be found by each worker, again and again."""
    for name in VARIABLES:
        with monkeypatch.context() as environment, pytest.raises(SystemExit, match=f"^Not started: {name} "):
            environment.setenv(name, f"{SECRET}\a")
            runpy.run_path(str(ROOT / "gunicorn.conf.py"))


@pytest.mark.parametrize("key", ["$ecret", "a$b", "${HOME}"])
def test_a_secret_key_in_the_file_of_the_folder_is_used_as_it_is_written(tmp_path, key):
    """A dollar sign began a reference to another variable once."""
    folder = new_folder_in(tmp_path)
    (folder / ".env").write_text(f"DJANGO_SECRET_KEY={key}\n")
    shown = python("-c", "from housing import settings; print(settings.SECRET_KEY)", folder=folder)

    assert (shown.stdout, shown.stderr) == (f"{key}\n", "")


def test_an_empty_folder_of_metrics_is_no_folder():
    """The library would take an empty one for the current folder, and the image's is read-only."""
    show = "import os; from housing import settings; print('PROMETHEUS_MULTIPROC_DIR' in os.environ)"

    assert python("-c", show, DJANGO_SECRET_KEY="any", PROMETHEUS_MULTIPROC_DIR="").stdout == "False\n"


# The documentation


def rows_of(heading):
    """The rows of the first table below a heading of docs/deploying.md, each a list of cells."""
    lines = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].splitlines()
    table = takewhile(lambda line: line.startswith("|"), lines[next(number for number, line in enumerate(lines) if line.startswith("|")) :])
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in list(table)[2:]]


def test_the_table_of_variables_in_the_documentation_is_the_registry():
    """A variable that only the code knows is found by nobody, and one that only the table knows does nothing."""
    due = [[f"`{name}`", f"`{variable.default}`" if variable.default else "", variable.meaning] for name, variable in VARIABLES.items()]

    assert rows_of("Environment variables") == due, "copy these rows:\n" + "\n".join(f"| {' | '.join(row)} |" for row in due)


def test_no_other_code_reads_a_variable():
    """A variable that is read elsewhere is neither checked at start nor in the table. The engine only looks whether its library counts in a folder.
    WSGI's environ has a header, and no variable.
    """
    elsewhere = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in [*(ROOT / "housing").rglob("*.py"), ROOT / "gunicorn.conf.py", ROOT / "manage.py"]
        for names in re.findall(r'(?:os\.environ|getenv)[.\w]*[\[(]\s*"(\w+)"|"(\w+)" in os\.environ', path.read_text(encoding="utf-8"))
        for name in filter(None, names)
    }
    assert {name for _, name in elsewhere} - {"CONTENT_TYPE"} == {"DJANGO_SETTINGS_MODULE", "PROMETHEUS_MULTIPROC_DIR"}


def test_the_variables_of_compose_are_documented_and_those_that_it_sets_are_in_the_registry():
    """`make up` takes them from the environment or from images.env."""
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    taken = set(re.findall(r"\$\{(\w+)", compose)) - VARIABLES.keys()

    assert {re.sub("`", "", row[0]) for row in rows_of("With Compose")} == taken
    assert set(re.findall(r"^ +((?:DJANGO|FRESHNESS|FORWARDED|WEB|HEALTH|REDIS|DATABASE)_\w+):", compose, re.MULTILINE)) <= VARIABLES.keys()
