"""Secure by default: secrets, headers and cookies, who can reach a server, what a container may do, and how much memory a client can take.

A value that is safe is written down here with its reason, so nobody changes one without saying why.
"""

import functools
import inspect
import re
import runpy
import stat
import sys
from importlib import import_module
from pkgutil import walk_packages

import pytest
import yaml  # of drf-spectacular
from django.conf import settings as service
from django.contrib import admin
from django.contrib.auth.hashers import check_password
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import get_default_password_validators, validate_password
from django.core import checks
from django.db.models.signals import post_save
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.utils.module_loading import import_string

import housing
from housing import run
from housing.settings import COMMANDS
from tests import ROOT
from tests.fixtures.processes import Ended, clone_of, new_folder_in, python

# Secrets


def test_every_folder_gets_its_own_secret_key(tmp_path, monkeypatch):
    """With one key for all, anybody with a copy of the project could sign the sessions and cursors of every service."""
    texts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setattr(run, "ROOT", folder)
        monkeypatch.setattr(run, "ENV_FILE", folder / ".env")
        run.write_env_file()
        texts.append(re.search("^DJANGO_SECRET_KEY=(.*)$", (folder / ".env").read_text(), re.MULTILINE)[1])

    assert texts[0] != texts[1]
    assert min(len(set(text)) for text in texts) > 20, "a random key of 50 bytes has dozens of different characters"


def test_every_admin_gets_their_own_password(transactional_db):
    """It is random, passes the validators, and only its hash is stored."""
    passwords = []
    for _ in range(2):
        passwords.append(run.create_admin())
        assert check_password(passwords[-1], User.objects.get().password)
        validate_password(passwords[-1], User.objects.get())
        User.objects.all().delete()

    assert passwords[0] != passwords[1]
    assert min(map(len, passwords)) >= 16


def test_an_existing_user_is_left_alone(transactional_db):
    """A second start must not reset a password."""
    User.objects.create_user("me", password="my own")

    assert run.create_admin() is None
    assert [user.username for user in User.objects.all()] == ["me"]


def test_containers_get_secrets_of_their_own_that_only_the_owner_can_read(tmp_path):
    """`make up` writes them once into two files. Neither is in the image, nor in docker-compose.yml."""
    secrets = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        clone = clone_of(tmp_path / name)
        assert clone.make(".env.service").code == 0
        files = [clone.folder / ".env.service", clone.folder / ".env.database"]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
        secrets += [*re.findall("[0-9a-f]{64}", files[0].read_text()), *re.findall("[0-9a-f]{64}", files[1].read_text())]

    key, password, same, other_key, other_password, _ = secrets
    assert password == same, "the service must know the password of its database"
    assert len({key, password, other_key, other_password}) == 4


@pytest.mark.parametrize("environment", [{}, {"DJANGO_DEBUG": "", "DJANGO_ALLOWED_HOSTS": ""}], ids=["not set", "empty"])
def test_debug_is_off_and_no_host_is_allowed_unless_the_environment_says_otherwise(tmp_path, environment):
    """A forgotten variable must not expose settings, SQL and tracebacks."""
    script = "from housing import settings as s; print(s.DEBUG, s.ALLOWED_HOSTS)"
    printed = python("-c", script, folder=new_folder_in(tmp_path), DJANGO_SECRET_KEY="any", **environment)

    assert printed == Ended(0, "False []\n", "")


# Headers, cookies and passwords


def test_the_only_security_checks_of_django_that_fail_are_those_of_the_proxy_in_front(settings):
    """Each removed middleware and each cookie that is not Secure has a check of Django's. TLS, and so HSTS, is the task of a proxy. W002 looks for a middleware
    that `housing.policies.Policies` is.
    """
    settings.SECRET_KEY = "".join(map(chr, range(65, 123)))  # as long and as varied as a real one

    found = checks.run_checks(tags=[checks.Tags.security], include_deployment_checks=True)

    assert {message.id for message in found} == {"security.W002", "security.W004", "security.W008"}, "HSTS, and the redirect to HTTPS"


def test_a_response_has_the_headers_that_protect_its_reader(transactional_db, client):
    """No framing, no guessing of content types, and no address of a page for other sites."""
    headers = client.get("/admin/login/").headers

    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_a_cookie_is_sent_over_https_only(transactional_db, client):
    """Otherwise anybody on the network could take the session of an editor. A script cannot read the session either."""
    User.objects.create_superuser("editor", password="a password")
    client.post("/admin/login/?next=/admin/", {"username": "editor", "password": "a password"})

    cookies = {name: bool(cookie["secure"]) for name, cookie in client.cookies.items()}
    assert cookies == {service.SESSION_COOKIE_NAME: True, service.CSRF_COOKIE_NAME: True}
    assert client.cookies[service.SESSION_COOKIE_NAME]["httponly"]


def test_a_weak_password_is_refused(transactional_db):
    """The admin is on the internet, too."""
    assert len(get_default_password_validators()) == 2
    for weak in ("short", "password123"):
        with pytest.raises(Exception, match=r"This password is too (short|common)"):
            validate_password(weak)


# Addresses


def test_make_run_listens_on_loopback_only(monkeypatch):
    """In debug, everybody may change rows, and fakeredis has no password. Neither is for the network."""
    started = []

    class Server:
        def __init__(self, command, **_):
            started.append(command)

        def wait(self):
            return 0

        kill = wait

    monkeypatch.setattr(run.subprocess, "Popen", Server)
    run.serve_until_the_code_changes(8000)
    assert started[0][-1] == "127.0.0.1:8000"


def test_the_fakeredis_of_make_run_listens_where_its_url_says(monkeypatch):
    """`make run` writes a URL of loopback into .env."""
    listening = []

    class Server:
        def __init__(self, address):
            listening.append(address)
            raise OSError(1, "not here")

    monkeypatch.setattr("fakeredis.TcpFakeServer", Server)
    with pytest.raises(run.Refused):
        run.fakeredis_at(run.cache_address("fakeredis://127.0.0.1:6380/0")).__enter__()
    assert listening == [("127.0.0.1", 6380)]
    assert "fakeredis://{host}:" in run.ENV
    assert run.HOST == "127.0.0.1"


# Containers


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = ("prepare", "service", "ready")


def test_only_the_service_and_its_proxy_are_published_and_only_on_this_machine_by_default():
    """PostgreSQL and Redis are on a network without a way in or out, because Redis has no password."""
    assert {name: each["ports"] for name, each in SERVICES.items() if "ports" in each} == {
        "service": ["127.0.0.1:${PORT:-8000}:8000"],
        "proxy": ["${TLS_BIND:-127.0.0.1}:${TLS_PORT:-8443}:8443"],
    }
    assert COMPOSE["networks"] == {"inside": {"internal": True}, "outside": None}
    assert {name for name, each in SERVICES.items() if each["networks"] != ["inside"]} == {*OURS, "proxy"}
    assert not any("network_mode" in each or "privileged" in each for each in SERVICES.values())


def test_a_container_has_no_more_rights_than_it_needs():
    """An intruder finds a folder that cannot be written, no capabilities, and no way to get any."""
    assert {name for name, each in SERVICES.items() if each["security_opt"] != ["no-new-privileges"]} == set()
    for name in OURS:
        assert (SERVICES[name]["read_only"], SERVICES[name]["cap_drop"], SERVICES[name]["tmpfs"]) == (True, ["ALL"], "/tmp:size=16m")
    steps = re.findall(r"^(\w+) (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [argument for step, argument in steps if step == "USER"] == ["housing"]


def test_docker_compose_yml_has_no_secret():
    """It is in the repository. The secrets are in two files that git and the image leave out."""
    assert {name: each.get("env_file") for name, each in SERVICES.items()} == {"database": ".env.database", "cache": None, "proxy": None} | dict.fromkeys(
        OURS, ".env.service"
    )
    assert {key for each in SERVICES.values() for key in each.get("environment", {}) if re.search("PASSWORD|SECRET|TOKEN", key)} == set()
    assert ".env.*" in (ROOT / ".gitignore").read_text().split()


def test_the_redis_of_compose_evicts_entries_before_the_journal_and_keeps_nothing_on_disk():
    """Entries have a TTL and the journal has none. A dump could only be old."""
    assert SERVICES["cache"]["command"] == ["redis-server", "--save", "", "--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru"]


def test_containers_start_in_order_and_again_after_a_crash():
    """The service starts when the database is migrated, and the command returns when the service is healthy."""
    waits = {name: {on: how["condition"] for on, how in each["depends_on"].items()} for name, each in SERVICES.items() if "depends_on" in each}
    assert waits == {
        "prepare": {"database": "service_healthy", "cache": "service_healthy"},
        "service": {"prepare": "service_completed_successfully"},
        "ready": {"service": "service_healthy"},
        "proxy": {"service": "service_healthy"},
    }
    assert {name for name, each in SERVICES.items() if each.get("restart") == "unless-stopped"} == {"database", "cache", "service", "proxy"}
    assert {name for name, each in SERVICES.items() if "healthcheck" in each} == {"database", "cache", "proxy"}, "the service's is in the Dockerfile"
    assert SERVICES["database"]["stop_signal"] == "SIGINT"


GUNICORN = {
    "worker_class": ("housing.worker.Granian", "no thread waits for a slow client, and one that waits for the database leaves three for hits"),
    "worker_connections": (900, "Linux gives a process 1,024 open files by default, and it needs some for PostgreSQL and Redis"),
    "threads": (4, "eight and sixteen gained nothing, and COLD_READS leaves half of them free"),
    "keepalive": (15, "it is longer than a client pauses between two requests"),
    "preload_app": (True, "the code is loaded once and shared"),
    "forwarded_allow_ips": ("127.0.0.1/32,::1/128", "a proxy on another machine is trusted only if the environment names it"),
    "forwarder_headers": ("", "no header of a client decides SCRIPT_NAME or PATH_INFO"),
    "accesslog": ("-", "the log of a container is what it prints"),
    "access_log_format": ('%(h)s "%(r)s" %(s)s %(B)s %(M)sms %({x-request-id}i)s', "the id of the request leads from a proxy's log to this one"),
    "control_socket_disable": (True, "its socket needs a home, and the container has none"),
}
"""Each setting, with its reason. Without a `timeout` of its own, gunicorn restarts a worker that hangs for 30 s."""


@pytest.mark.parametrize(("concurrency", "workers"), [(None, 7), ("", 7), ("3", 3)])
def test_gunicorn_has_one_worker_for_each_core_unless_the_environment_says_otherwise(monkeypatch, concurrency, workers):
    """A warm read is work for the processor, so more processes than cores would only take turns."""
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    if concurrency is not None:
        monkeypatch.setenv("WEB_CONCURRENCY", concurrency)

    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["workers"] == workers


def test_every_setting_of_gunicorn_is_written_down_with_its_reason():
    """A setting that no spec reads can be changed by mistake, and nobody notices before it hurts."""
    from gunicorn.config import KNOWN_SETTINGS

    known = {setting.name for setting in KNOWN_SETTINGS}
    found = {name: value for name, value in runpy.run_path(str(ROOT / "gunicorn.conf.py")).items() if name in known}

    assert {name for name, value in found.items() if callable(value)} == {"pre_fork", "post_worker_init"}
    assert {name: value for name, value in found.items() if not callable(value) and name != "workers"} == {name: value for name, (value, _) in GUNICORN.items()}


def test_gunicorn_counts_as_a_server_and_so_has_the_timeouts_of_requests():
    """The path of its program is not in COMMANDS."""
    assert not "/venv/bin/gunicorn".endswith(COMMANDS)
    assert (ROOT / "Dockerfile").read_text().splitlines()[-1] == 'CMD ["gunicorn", "housing.wsgi", "--bind", "0.0.0.0:8000"]'


# Memory


FEW = {"housing.freshness.compiler.mixed", "housing.freshness.places.decimals", "housing.freshness.requests._noted"}
"""Their arguments are classes of the code and numbers in its models, so their number is bounded."""


def caches():
    """Every function of the service that keeps its results, by its name."""
    for module in walk_packages(housing.__path__, "housing."):
        if ".migrations" not in module.name and module.name not in ("housing.wsgi", "housing.freshness.metrics.exporter"):
            import_module(module.name)
    for name, module in list(sys.modules.items()):
        if name.startswith("housing.") and module is not None:
            for attribute, value in vars(module).items():
                if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == name:
                    yield f"{name}.{attribute}", value


def test_no_client_can_fill_the_memory_of_a_process():
    """Only a bounded number of query strings and other texts of clients is kept. 4,096 of them take some megabytes."""
    found = dict(caches())
    sizes = {name: each.cache_parameters()["maxsize"] for name, each in found.items()}
    unbounded = {name for name, size in sizes.items() if size is None and inspect.signature(found[name]).parameters}

    assert len(found) > 10
    assert unbounded == FEW
    assert max(size for size in sizes.values() if size is not None) <= 4096


# The admin


@pytest.mark.parametrize("model", [model for model in admin.site._registry if model._meta.app_label == "housing"], ids=lambda model: model.__name__)
def test_the_admin_saves_a_row_with_its_save_method(home, client, model):
    """`update()` would skip the signals, `updated_at` and the protection of `created_at`, and other people's receivers of signals with them."""
    client.force_login(User.objects.create_superuser("editor"))
    row = model.objects.order_by("pk").last()
    url = f"/admin/housing/{model._meta.model_name}/{row.pk}/change/"
    form = client.get(url).context["adminform"].form
    values = {name: form[name].value() for name in form.fields}
    text = next(name for name in ("title", "name", "city", "caption") if name in values)
    inlines = {f"{inline.formset.prefix}-{name}": value for inline in client.get(url).context["inline_admin_formsets"] for name, value in empty(inline.formset)}
    saves = []

    def note(sender, instance, created, **_):
        saves.append((sender, instance.pk, created))

    post_save.connect(note)
    try:
        answer = client.post(url, {name: "" if value is None else value for name, value in (values | {text: "Changed"}).items()} | inlines)
    finally:
        post_save.disconnect(note)

    assert answer.status_code == 302, answer.context["errors"]
    assert getattr(model.objects.get(pk=row.pk), text) == "Changed"
    assert (model, row.pk, False) in saves


def empty(formset):
    """The values of a formset that changes nothing."""
    yield "TOTAL_FORMS", 0
    yield "INITIAL_FORMS", 0


def test_every_middleware_can_be_imported_and_the_protecting_ones_are_there():
    """The order matters, too: the health checks come first, and the security headers are on static files as well."""
    names = [name.rpartition(".")[2] for name in service.MIDDLEWARE]
    assert all(map(import_string, service.MIDDLEWARE))
    assert names.index("SecurityMiddleware") < names.index("WhiteNoiseMiddleware")
    assert {"CsrfViewMiddleware", "AuthenticationMiddleware", "AxesMiddleware", "Policies", "TrustedProxies"} < set(names)
    assert issubclass(import_string("housing.policies.Policies"), XFrameOptionsMiddleware)
