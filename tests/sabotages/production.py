"""Sabotages of the service behind a proxy, of its containers, and of what it is built from."""

from tests.sabotages import Sabotage

SCHEME = "test_production.py::test_an_untrusted_peer_does_not_decide_the_scheme"
CLIENT = "test_production.py::test_the_client_has_the_last_forwarded_address_that_no_proxy_has"

PRODUCTION = (
    Sabotage("proxy: everybody is trusted", "proxies.py", 'if not address or "*" in proxies:', "if True:", f"{SCHEME}[198.51.100.9]"),
    Sabotage(
        "proxy: an untrusted peer's headers stay",
        "proxies.py",
        "given.pop(name, None)",
        "pass",
        "test_production.py::test_an_untrusted_peer_leaves_no_forwarded_header",
    ),
    Sabotage(
        "proxy: the first address is the client's",
        "proxies.py",
        "in reversed([part.strip()",
        "in list([part.strip()",
        f"{CLIENT}[an invention before the client]",
    ),
    Sabotage(
        "proxy: the client may write no address",
        "proxies.py",
        "        except ValueError:\n            break",
        "        except ValueError:\n            pass",
        f"{CLIENT}[no address]",
    ),
    Sabotage(
        "proxy: the forwarded scheme is ignored",
        "settings.py",
        'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")',
        "SECURE_PROXY_SSL_HEADER = None",
        "test_production.py::test_an_admin_logs_in_over_https_through_a_trusted_proxy",
    ),
    Sabotage(
        "proxy: the forwarded host is taken from everybody",
        "proxies.py",
        '"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", ',
        '"HTTP_X_FORWARDED_FOR", ',
        "test_production.py::test_an_untrusted_peer_leaves_no_forwarded_header",
    ),
    Sabotage(
        "proxy: a login is not protected by origin",
        "settings.py",
        '    "django.middleware.csrf.CsrfViewMiddleware",\n',
        "",
        "test_production.py::test_an_admin_logs_in_over_https_through_a_trusted_proxy",
    ),
    Sabotage(
        "hosts: the health checks come after the check of the host",
        "outages.py",
        "if request.path_info in health.CHECKS:",
        "if request.get_host() and request.path_info in health.CHECKS:",
        "test_production.py::test_only_the_health_checks_answer_to_a_host_that_is_not_allowed",
    ),
    Sabotage(
        "hosts: every address answers to every host",
        "outages.py",
        "        try:\n            return self.get_response(request)",
        "        try:\n            request.META['HTTP_HOST'] = 'homes.example.com'\n            return self.get_response(request)",
        "test_production.py::test_only_the_health_checks_answer_to_a_host_that_is_not_allowed",
    ),
    Sabotage(
        "check --deploy: the session cookie is sent over plain HTTP",
        "settings.py",
        "SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG",
        "CSRF_COOKIE_SECURE = not DEBUG",
        "test_production.py::test_check_deploy_has_nothing_to_say_about_the_documented_settings",
    ),
    Sabotage(
        "check --deploy: the warnings of HSTS are silenced for everybody",
        "settings.py",
        "if not set(ALLOWED_HOSTS) - set(THIS_MACHINE):",
        "if True:",
        "test_production.py::test_without_tls_only_this_machine_is_free_of_warnings",
    ),
    Sabotage(
        "containers: one has no limit of memory",
        "../docker-compose.yml",
        "    mem_limit: 512m # maxmemory",
        "    # maxmemory",
        "test_production.py::test_every_container_has_limits_of_memory_and_processes_and_gains_no_privileges[cache]",
    ),
    Sabotage(
        "containers: Redis may use all memory of its container",
        "../docker-compose.yml",
        "--maxmemory, 256mb",
        "--maxmemory, 512mb",
        "test_production.py::test_redis_in_a_container_has_less_memory_than_the_container",
    ),
    Sabotage(
        "containers: the image has no health check",
        "../Dockerfile",
        "HEALTHCHECK --interval",
        "# HEALTHCHECK --interval",
        "test_production.py::test_every_server_in_a_container_has_a_health_check[service]",
    ),
    Sabotage(
        "containers: an image has a tag only",
        "../images.env",
        "REDIS_IMAGE=redis:7.4-bookworm@sha256:c6eabf748fc7a61dbb5a705c78bcf3d6377b1127a97d0ce965c11c44ba46896f",
        "REDIS_IMAGE=redis:7.4-bookworm",
        "test_production.py::test_every_image_is_pinned_by_digest[REDIS_IMAGE]",
    ),
    Sabotage(
        "supply chain: an action is pinned to a tag",
        "../.github/workflows/ci.yml",
        "actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0",
        "actions/upload-artifact@v7",
        "test_production.py::test_every_action_of_the_workflow_is_pinned_by_hash_and_names_its_release",
    ),
    Sabotage(
        "supply chain: nobody looks up known vulnerabilities",
        "../.github/workflows/ci.yml",
        "      - run: make audit\n",
        "",
        "test_production.py::test_the_workflow_looks_up_known_vulnerabilities_of_the_lock",
    ),
    Sabotage(
        "supply chain: nobody compares the commits with their releases",
        "../.github/workflows/ci.yml",
        "run: .venv/bin/zizmor --persona",
        "run: .venv/bin/zizmor --offline --persona",
        "test_production.py::test_the_workflow_compares_each_pinned_action_with_its_release",
    ),
    Sabotage(
        "supply chain: nothing is walked with Compose v2",
        "../.github/workflows/ci.yml",
        "run: docker compose version && ! command",
        "run: command",
        "test_production.py::test_the_workflow_builds_the_image_and_walks_through_its_containers",
    ),
    Sabotage(
        "supply chain: CI is silent about what it did not look up",
        "../.ci/run",
        'echo "NOT CHECKED: ',
        'true "',
        "test_production.py::test_a_run_of_all_checks_looks_up_known_vulnerabilities_or_says_that_it_could_not",
    ),
)
