"""The service in production: behind a proxy that terminates TLS, in containers, and what it is built from.

`.ci/walk` starts the containers, and logs in to the admin over HTTPS through the proxy.
"""

import json
import re
import runpy
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from django.contrib.auth.models import User
from django.test import Client
from django.urls import get_resolver
from django_redis import get_redis_connection

from housing import health
from housing.proxies import TrustedProxies
from tests import ROOT
from tests.fixtures.cache import entries
from tests.fixtures.processes import python
from tests.sabotages.__main__ import SABOTAGES, part_of
from tests.stacks import TIMEOUT

PROXY, CLIENT, OTHER = "10.0.0.5", "203.0.113.7", "198.51.100.9"
"""The proxy, a client of it, and somebody who reaches the service without it."""


@pytest.fixture
def site(settings, db):
    """The service at https://homes.example.com, behind a proxy that passes on the host."""
    settings.ALLOWED_HOSTS = ["homes.example.com"]
    settings.TRUSTED_PROXIES = [f"{PROXY}/32", "10.1.0.0/16", "fd00::/8"]
    settings.SECURE_SSL_REDIRECT, settings.SECURE_HSTS_SECONDS = True, 3600
    return settings


def through(peer, **headers):
    """A browser whose requests reach the service from this address, with these headers."""
    return Client(REMOTE_ADDR=peer, enforce_csrf_checks=True, headers={"Host": "homes.example.com"} | headers)


HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-For": CLIENT}

# The scheme and the host


def log_in(browser, origin):
    """The status of a login to the admin, by the form that the service has sent."""
    User.objects.create_superuser("admin", password="of the spec")
    page = browser.get("/admin/login/")
    token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.content.decode())[1]
    return browser.post(
        "/admin/login/?next=/admin/", {"csrfmiddlewaretoken": token, "username": "admin", "password": "of the spec"}, headers={"Origin": origin}
    )


@pytest.mark.parametrize(("origin", "status"), [("https://homes.example.com", 302), ("http://homes.example.com", 403), ("https://elsewhere.example", 403)])
def test_an_admin_logs_in_over_https_through_a_trusted_proxy(site, origin, status):
    """The browser sends its origin with https, and the proxy sends plain HTTP. Without the forwarded scheme, no login would succeed."""
    assert log_in(through(PROXY, **HTTPS), origin).status_code == status


def test_a_login_is_accepted_from_a_further_origin_that_is_trusted(site):
    """For a proxy that does not pass on the host."""
    site.CSRF_TRUSTED_ORIGINS = ["https://admin.example.com"]

    assert log_in(through(PROXY, **HTTPS), "https://admin.example.com").status_code == 302


def test_the_cookies_of_a_login_are_for_https_and_the_server_alone(site):
    """A script or a plain connection could read the session otherwise."""
    cookies = log_in(through(PROXY, **HTTPS), "https://homes.example.com").cookies

    assert {name: (cookie["secure"], cookie["samesite"]) for name, cookie in cookies.items()} == {
        "sessionid": (True, "Lax"),
        "csrftoken": (True, "Lax"),
    }
    assert cookies["sessionid"]["httponly"]


@pytest.mark.parametrize("peer", [PROXY, "10.1.2.3", "fd00::1", ""], ids=["an address", "a network", "IPv6", "a Unix socket"])
def test_a_trusted_proxy_decides_the_scheme(site, peer):
    """Over HTTPS there is no redirect, and the response has HSTS."""
    response = through(peer, **HTTPS).get("/api/properties/cached/")

    assert (response.status_code, response.headers["Strict-Transport-Security"]) == (200, "max-age=3600")
    plain = through(peer, **{"X-Forwarded-Proto": "http"}).get("/api/properties/cached/?a=1")
    assert (plain.status_code, plain.headers["Location"]) == (301, "https://homes.example.com/api/properties/cached/?a=1")


@pytest.mark.parametrize("peer", [OTHER, "10.0.0.6", "fe80::1", "nonsense"])
def test_an_untrusted_peer_does_not_decide_the_scheme(site, peer):
    """Otherwise anybody could have pages over plain HTTP that are meant for HTTPS."""
    assert through(peer, **HTTPS).get("/api/properties/cached/").status_code == 301


@pytest.mark.parametrize("peer", [PROXY, OTHER])
@pytest.mark.parametrize("taken", [True, False])
def test_the_forwarded_host_is_used_if_it_is_switched_on_and_the_proxy_is_trusted(site, peer, taken):
    """It would end up in redirects and in the check of origins."""
    site.USE_X_FORWARDED_HOST = taken
    response = through(peer, **{"Host": "homes.example.com", "X-Forwarded-Host": "elsewhere.example"}).get("/api/docs/")

    assert response.status_code == (400 if taken and peer == PROXY else 301)


@pytest.mark.parametrize(("given", "passed_on"), [("10.0.0.5, fd00::/8", "10.0.0.5/32,fd00::/8"), ("*", "*"), ("", "127.0.0.1/32,::1/128")])
def test_gunicorn_trusts_the_same_proxies(monkeypatch, given, passed_on):
    """gunicorn's own worker decides the scheme before Django sees a request, and would trust this machine alone."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", given)

    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["forwarded_allow_ips"] == passed_on


SEEN = {
    "one proxy": (PROXY, CLIENT, CLIENT),
    "two proxies": (PROXY, f"{CLIENT}, 10.1.9.9", CLIENT),
    "an invention before the client": (PROXY, f"127.0.0.1, {CLIENT}, 10.1.9.9", CLIENT),
    "an invention without a proxy": (OTHER, "127.0.0.1", OTHER),
    "only proxies": (PROXY, "10.1.1.1, 10.1.9.9", "10.1.1.1"),
    "no address": (PROXY, "unknown", PROXY),
    "an empty header": (PROXY, "", PROXY),
    "a port": (PROXY, f"{CLIENT}:80", PROXY),
    "IPv6": ("fd00::1", "2001:db8::7", "2001:db8::7"),
}


@pytest.mark.parametrize("what", SEEN)
def test_the_client_has_the_last_forwarded_address_that_no_proxy_has(site, what, rf):
    """Limits for logins and log lines use it. The client may have invented everything before it."""
    peer, forwarded, expected = SEEN[what]
    request = rf.get("/", REMOTE_ADDR=peer, headers={"X-Forwarded-For": forwarded})
    TrustedProxies(lambda request: None)(request)

    assert request.META["REMOTE_ADDR"] == expected


def test_an_untrusted_peer_leaves_no_forwarded_header_that_django_reads(site, rf, settings):
    """Nothing behind the middleware can use one by mistake."""
    headers = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT", settings.SECURE_PROXY_SSL_HEADER[0])
    request = rf.get("/", REMOTE_ADDR=OTHER, **dict.fromkeys(headers, "x"))
    TrustedProxies(lambda request: None)(request)

    assert not [name for name in request.META if name.startswith("HTTP_X_FORWARDED")]


# Hosts


def addresses():
    """Every address of the service, with a number in place of each parameter."""
    found = set()

    def walk(patterns, before=""):
        for pattern in patterns:
            text = before + re.sub(r"<[^>]*>|\(\?P.*?\)", "1", str(pattern.pattern)).strip("^$").replace("\\Z", "")
            if hasattr(pattern, "url_patterns"):
                walk(pattern.url_patterns, text)
            else:
                found.add(f"/{text}")

    walk(get_resolver().url_patterns)
    return sorted(found)


@pytest.mark.parametrize("host", ["10.9.8.7", "10.9.8.7:8000", "[fd00::7]:8000", "elsewhere.example"])
def test_only_the_health_checks_answer_to_a_host_that_is_not_allowed(site, host):
    """A load balancer uses the address of the process. For every other address, a foreign host in a page or a redirect would lead a reader elsewhere."""
    balancer = through(PROXY, **HTTPS | {"Host": host})
    answered = {path for path in addresses() if balancer.get(path).status_code != 400}

    assert answered == set(health.CHECKS)


@pytest.mark.parametrize("path", health.CHECKS)
def test_a_health_check_is_not_redirected_to_https(site, path):
    """A load balancer speaks plain HTTP with the process, and takes a redirect for a failure."""
    assert through(OTHER, Host="10.9.8.7:8000").get(path).status_code == 200


# check --deploy

DEPLOYED = {
    "DJANGO_SECRET_KEY": "0123456789abcdef" * 4,
    "DJANGO_ALLOWED_HOSTS": "homes.example.com",
    "DJANGO_SECURE_SSL_REDIRECT": "true",
    "DJANGO_SECURE_HSTS_SECONDS": "3600",
}
"""The variables of docs/deploying.md, and a secret key as `make up` writes it."""


def reported_by(**environment):
    """The IDs of the warnings and errors of Django's own checks for a deployment, in a process with these variables."""
    show = (
        "import json, django; django.setup(); from django.core import checks;"
        "found = checks.run_checks(include_deployment_checks=True, tags=['security']);"
        "print(json.dumps(sorted(m.id for m in found if not m.is_silenced())))"
    )
    ended = python("-c", show, DJANGO_SETTINGS_MODULE="housing.settings", REDIS_URL="redis://127.0.0.1:1/0", **environment)
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_check_deploy_has_nothing_to_say_about_the_documented_settings():
    """The sessions, the cookies and the headers are as Django wants them."""
    assert reported_by(**DEPLOYED) == []


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("DJANGO_SECRET_KEY", "short", ["security.W009"]),
        ("DJANGO_SECURE_SSL_REDIRECT", "false", ["security.W008"]),
        ("DJANGO_SECURE_HSTS_SECONDS", "0", ["security.W004"]),
        ("DJANGO_ALLOWED_HOSTS", "", ["security.W020"]),
    ],
)
def test_check_deploy_reports_each_documented_setting_that_is_missing(name, value, found):
    """Two warnings that concern a whole domain are silenced, and no other one is."""
    assert reported_by(**DEPLOYED | {name: value}) == found


def test_without_tls_only_this_machine_is_free_of_warnings():
    """`make up` serves 127.0.0.1, where browsers need no TLS."""
    plain = {"DJANGO_SECRET_KEY": DEPLOYED["DJANGO_SECRET_KEY"]}

    assert reported_by(**plain, DJANGO_ALLOWED_HOSTS="127.0.0.1,localhost") == []
    assert reported_by(**plain, DJANGO_ALLOWED_HOSTS="127.0.0.1,homes.example.com") == ["security.W004", "security.W008"]


# Containers

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVERS = [name for name, service in COMPOSE["services"].items() if service.get("restart")]
IMAGES = dict(re.findall(r"^(\w+_IMAGE)=(\S+)$", (ROOT / "images.env").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_has_limits_of_memory_and_processes_and_gains_no_privileges(name):
    """One that leaks ends by itself, and not the programs beside it."""
    container = COMPOSE["services"][name]

    assert re.fullmatch(r"\d+[mg]", container["mem_limit"])
    assert 0 < container["pids_limit"] <= 512
    assert container["security_opt"] == ["no-new-privileges"]


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_in_a_container_has_a_health_check(name):
    """Compose waits for it, and `docker ps` shows it. That of the service is in its image, so that other supervisors have it, too."""
    checked = COMPOSE["services"][name].get("healthcheck", {}).get("test", "")
    in_the_image = (ROOT / "Dockerfile").read_text(encoding="utf-8") if COMPOSE["services"][name]["image"] == "housing" else ""

    assert checked or re.search(r"^HEALTHCHECK .*\\\n +CMD .*8081/health/", in_the_image, re.MULTILINE)


def test_redis_in_a_container_has_less_memory_than_the_container():
    """Otherwise the kernel would kill it before it evicts an entry. Its buffers need some, too."""
    command, limit = COMPOSE["services"]["cache"]["command"], COMPOSE["services"]["cache"]["mem_limit"]

    assert 2 * int(command[command.index("--maxmemory") + 1].removesuffix("mb")) <= int(limit.removesuffix("m"))
    assert command[command.index("--maxmemory-policy") + 1] == "volatile-lru"


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_is_pinned_by_digest(name):
    """A tag may be another image tomorrow."""
    assert re.fullmatch(r"[a-z0-9./-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}", IMAGES[name])


def test_compose_and_the_image_take_every_base_from_the_pinned_images():
    """One in place of a variable would escape the spec above."""
    used = {service["image"] for service in COMPOSE["services"].values()} - {"housing"}
    bases = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {re.match(r"\$\{(\w+)", image)[1] for image in used | bases} <= IMAGES.keys()


@pytest.mark.only("real")
def test_an_entry_of_a_page_of_twenty_takes_less_than_25_kilobytes(twenty_properties, warm):
    """docs/deploying.md computes the memory of Redis from it. (Real only: fakeredis does not know its memory.)"""
    warm()
    [key] = entries()

    assert 5_000 < get_redis_connection("default").memory_usage(key, samples=0) < 25_000


# The supply chain

WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(WORKFLOW)["jobs"]
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]


def runs(command):
    """The jobs of the hosted workflow that run this command."""
    return {name for name, step in STEPS if command in step.get("run", "")}


def test_every_action_of_the_workflow_is_pinned_by_hash_and_names_its_release():
    """A tag can be moved. `zizmor` compares each commit with the tag in its comment, where it can reach GitHub."""
    used = re.findall(r"uses: (\S+?)@(\S+)(.*)", WORKFLOW)
    pins = {(action, commit, comment) for action, commit, comment in used}

    assert len(used) == sum("uses" in step for _, step in STEPS)
    assert [pin for pin in pins if not re.fullmatch("[0-9a-f]{40}", pin[1]) or not re.fullmatch(r" # v\d+\.\d+\.\d+", pin[2])] == []
    assert len(pins) == len({action for action, _, _ in pins}), "an action has one version in all jobs"


def test_the_workflow_compares_each_pinned_action_with_its_release():
    """Without a network, nobody knows whether it exists: only GitHub does."""
    [(_, step)] = [(name, step) for name, step in STEPS if "zizmor" in step.get("run", "")]

    assert "--offline" not in step["run"]
    assert step["env"]["GH_TOKEN"] == "${{ github.token }}"


def test_the_workflow_looks_up_known_vulnerabilities_of_the_lock():
    """Also when nothing changes here, because an advisory may be new."""
    assert runs("make audit")
    assert yaml.safe_load(WORKFLOW)[True]["schedule"]  # YAML takes the key `on` for true


def test_the_workflow_runs_every_sabotage():
    """A change may make a spec pass whatever the code does: a promise that pages stay warm is kept by another mechanism then."""
    [job] = runs("make sabotages")
    parts = JOBS[job]["strategy"]["matrix"]["include"]
    run = [sabotage for each in parts for sabotage in part_of([row for row in SABOTAGES if row.stack == each["stack"]], each["part"])]

    assert sorted(sabotage.what for sabotage in run) == sorted(sabotage.what for sabotage in SABOTAGES)


@pytest.fixture
def advisories():
    """A stub of osv.dev. `advisories.vulnerable` are the packages with an advisory, and `advisories.asked` what was looked up."""

    class Advisories(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = question["package"]["name"], question["version"]
            self.server.asked[name] = version
            affected = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": [version], "ranges": []}
            found = [{"id": "PYSEC-2099-1", "summary": "", "details": "", "affected": [affected]}] if name in self.server.vulnerable else []
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        server.asked, server.vulnerable = {}, set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(advisories):
    """The command of `make audit`, with the stub in place of osv.dev."""
    command = re.search(r"\$\(BIN\)/pip-audit (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1].replace("$(LOCK)", "requirements.lock")
    return python("-m", "pip_audit", *command.split(), "--osv-url", f"http://127.0.0.1:{advisories.server_port}/v1/query")


@pytest.mark.slow
def test_an_audit_looks_up_every_package_of_the_image_and_fails_for_an_advisory(advisories):
    """One that cannot fail, or skips a package, would be worth nothing."""
    everywhere = dict(re.findall(r"^(\S+)==(\S+) \\$", (ROOT / "requirements-image.lock").read_text(encoding="utf-8"), re.MULTILINE))
    clean = audit(advisories)
    assert clean.code == 0, clean.stderr
    assert everywhere.items() <= advisories.asked.items()

    advisories.vulnerable.add("django")
    found = audit(advisories)

    assert found.code == 1
    assert re.search(rf"django +{re.escape(everywhere['django'])} +PYSEC-2099-1", found.stdout)


def test_the_workflow_builds_the_image_and_walks_through_its_containers():
    """Developers have v2, and the other runs may have 1.29."""
    [job] = runs(".ci/walk")

    assert "docker compose version" in " ".join(step.get("run", "") for step in JOBS[job]["steps"])


def test_a_run_of_all_checks_looks_up_known_vulnerabilities_or_says_that_it_could_not():
    """A run that skips the look-up silently would count as one without findings."""
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert re.search(r"\n +make audit\nelse\n +echo \"NOT CHECKED: ", run)


@pytest.fixture
def versions(tmp_path):
    """`.ci/versions` with stubs of all that it runs: two other Pythons, an image with two more, and a command that fails if it matches FAILS."""
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    commands = [tmp_path / "bin" / name for name in ("python3.11", "pyenv", "docker", "git")]
    for command in (*commands, tmp_path / ".venv/bin/python", tmp_path / ".venv/bin/pytest", tmp_path / "3.12.1/bin/python", tmp_path / "3.13.1/bin/python"):
        command.parent.mkdir(parents=True, exist_ok=True)
        command.symlink_to(stub)
    for name in (".ci/versions", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)

    def run(**environment):
        environment |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHON_IMAGE": "image"}
        ended = subprocess.run([tmp_path / ".ci/versions"], env=environment, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False)
        return ended.returncode, ended.stdout

    return run


STUB = r"""#!/bin/bash
[[ "$0 $*" == ${FAILS:-nothing} ]] && exit 1
case "${0##*/} $*" in
    "python -c"*) echo 3.11 ;;
    "python"*" -m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/pip" && cp "$0" "$3/bin/pytest" ;;
    "pyenv versions"*) printf '%s\n' 3.11.7 3.12.1 3.13.1 ;;
    "pyenv prefix"*) echo "$HOME/$2" ;;
    "docker run --rm image"*) printf '%s\n' python3.14 python3.15 ;;
    "pip install"*) echo "pip ${*: -1}" ;;
esac
"""
VERSIONS = [
    "the instruments on the oldest versions",
    "Python 3.12.1 with Django 6.0",
    "Python 3.13.1 with Django 6.1",
    "python3.14 in the image",
    "python3.15 in the image",
]


def test_a_run_on_the_other_versions_has_a_line_for_each(versions):
    """Its end shows which versions passed. Each further Django is run once, because its combinations with each Python would take hours."""
    code, output = versions()

    assert code == 0
    assert [re.sub(r": \d+ s, installation included$", "", line) for line in output.splitlines()[-len(VERSIONS) :]] == VERSIONS
    assert [line for line in output.splitlines() if line.startswith("pip django")] == ["pip django==6.0.*", "pip django==6.1.*"]


def test_a_version_for_which_too_little_time_is_left_is_not_run_and_its_line_says_so(versions):
    """A run that leaves out a version silently would count as one on which it passed."""
    code, output = versions(SECONDS_LEFT="100", SECONDS_EACH="1000")

    assert code == 0
    assert [re.sub(r" It takes some 1000 s here, and (\d\d|100) s are left\.", "", line) for line in output.splitlines()] == [
        f"NOT RUN: {name}. The hosted workflow runs it." for name in VERSIONS
    ]


@pytest.mark.parametrize("fails", ["*/venv/bin/pytest *", "*/docker run * --interactive *"], ids=["in an environment", "in the image"])
def test_a_version_on_which_a_spec_fails_ends_the_run(versions, fails):
    """By default, a shell script goes on after a command that failed."""
    code, output = versions(FAILS=fails)

    assert code == 1
    assert "installation included" not in output


def test_the_lock_has_a_hash_of_every_package():
    """An archive that was replaced after the lock was written is not installed."""
    for lock in ROOT.glob("requirements*.lock"):
        packages = re.split(r"\n(?=\S+==)", lock.read_text(encoding="utf-8"))
        assert [package.split()[0] for package in packages if "--hash=sha256:" not in package] == [], lock.name
