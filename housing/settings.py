"""The settings for both stacks: DATABASE_URL and REDIS_URL choose the servers. Secure by default."""

import datetime
import os
import socket
import struct
import sys
from pathlib import Path
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

from housing.database_url import database
from housing.environment import REDIS_TIMEOUT, ROOT, read
from housing.redis_url import redis_cache

DEBUG = read("DJANGO_DEBUG")
SECRET_KEY = read("DJANGO_SECRET_KEY") or ("debug only" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured("DJANGO_SECRET_KEY is not set. Set it to a long random text, or run `make run`, which writes one into .env.")
THIS_MACHINE = ["127.0.0.1", "localhost", "[::1]"]
ALLOWED_HOSTS = read("DJANGO_ALLOWED_HOSTS") or (THIS_MACHINE if DEBUG else [])

RTF_GATEWAY = 0x2  # linux/route.h


def gateways(routes: Path = Path("/proc/net/route")) -> list[str]:
    """Return the gateways of the default routes from Linux's routing table; none if there is no such file."""
    table = [line.split() for line in routes.read_text().splitlines()[1:]] if routes.is_file() else []
    return [socket.inet_ntoa(struct.pack("=L", int(gateway, 16))) for _, to, gateway, flags, *_ in table if to == "00000000" and int(flags, 16) & RTF_GATEWAY]


# These addresses see the toolbar. A request from the host reaches a container from the container's gateway.
INTERNAL_IPS = ["127.0.0.1", "::1", *(gateways() if DEBUG else [])]

# The engines

COMMANDS = ("manage.py", "django-admin", "django/__main__.py", "housing/run.py", "-c")
"""How the path of a program ends that runs management commands, or `prepare` of housing/run.py."""

REQUEST_TIMEOUTS = " ".join(
    f"-c {name}={milliseconds}"
    for name, milliseconds in {
        "lock_timeout": 3_000,  # a row is locked for milliseconds; the error says more than that of the next
        "statement_timeout": 5_000,  # a page takes milliseconds, and a client does not wait longer than this
        "idle_in_transaction_session_timeout": 10_000,  # a request that hangs in its transaction must not keep its locks
    }.items()
)
"""For requests only: a migration, an import or `warm_cache` may take minutes."""


def serves_requests(argv: list[str]) -> bool:
    """Whether this process is a server, and no command. An unknown program counts as a server."""
    return not argv[0].endswith(COMMANDS) or "runserver" in argv[1:2]


chosen = read("DATABASE_URL") or database(f"sqlite:///{quote(str(ROOT / 'db.sqlite3'))}")
from_url = chosen["OPTIONS"]
if chosen["ENGINE"].endswith("sqlite3"):
    # A transaction waits for SQLite's write lock when it begins, because one that asks for it later may fail instead.
    # WAL lets readers continue during a write. (https://www.sqlite.org/wal.html, https://www.sqlite.org/lang_transaction.html)
    # `timeout` is how many seconds a writer waits for another one: an import may take that long.
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
else:
    chosen = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True} | chosen
    # Nothing waits for ever: neither for a server that does not reply (libpq's least is 2 s) nor for one that vanished without closing its connections.
    options = {"connect_timeout": 2, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 10_000}
    if serves_requests(sys.argv):
        from_url["options"] = f"{REQUEST_TIMEOUTS} {from_url.get('options', '')}".strip()  # PostgreSQL uses the last value of each
        chosen["REPLY_TIMEOUT"] = 6  # more than statement_timeout, which the server enforces while it is alive
DATABASES = {"default": chosen | {"OPTIONS": options | from_url}}

REDIS_URL = read("REDIS_URL")
EMBEDDED = REDIS_URL.startswith("fakeredis://")  # fakeredis://HOST:PORT is a TCP server; fakeredis:// runs in this process
CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "KEY_PREFIX": "housing"} | redis_cache(REDIS_URL, timeout=REDIS_TIMEOUT)}

# Freshness

FRESHNESS_MODELS = ["housing"]
FRESHNESS_NAME = "housing"
# They refuse requests and add headers, as the request alone decides.
FRESHNESS_SKIPPED_MIDDLEWARE = [
    *("housing.outages.Outages", "housing.proxies.TrustedProxies", "housing.policies.Policies", "housing.sessions.Sessions"),
    *("whitenoise.middleware.WhiteNoiseMiddleware", "axes.middleware.AxesMiddleware"),
]
FRESHNESS_FAST_PATH = read("FRESHNESS_FAST_PATH")
FRESHNESS_METRICS_TOKEN = read("FRESHNESS_METRICS_TOKEN") or ""
if not read("PROMETHEUS_MULTIPROC_DIR"):
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # an empty one would be the current folder

FRESHNESS_IGNORED_SETTINGS = ["REDIS_URL", "TRUSTED_PROXIES"]  # each Redis has its own entries, and no proxy is in a response
# fakeredis has no run id, but it always starts empty.
FRESHNESS_RUN_ID = "fakeredis" if EMBEDDED else None

# Django

INSTALLED_APPS = [
    "housing",
    "housing.freshness",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "axes",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]
MIDDLEWARE = [
    "housing.outages.Outages",  # first, so that nothing delays a health check
    "housing.proxies.TrustedProxies",  # before everything that looks at the client's address, the scheme or the host
    "django.middleware.security.SecurityMiddleware",
    "housing.policies.Policies",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "housing.sessions.Sessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "axes.middleware.AxesMiddleware",
]
if DEBUG:
    INSTALLED_APPS.append("debug_toolbar")
    MIDDLEWARE.insert(0, "debug_toolbar.middleware.DebugToolbarMiddleware")
DEBUG_TOOLBAR_CONFIG = {
    "SHOW_TOOLBAR_CALLBACK": "housing.home.shows_toolbar",
    "ROOT_TAG_EXTRA_ATTRS": 'role="complementary" aria-label="Debug Toolbar"',  # a landmark for screen readers
}

ROOT_URLCONF = "housing.urls"
WSGI_APPLICATION = "housing.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = datetime.timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]  # a stranger cannot lock out an administrator who is elsewhere
AXES_LOCKOUT_CALLABLE = "housing.refusals.locked_out"
AXES_VERBOSE = False
AXES_SENSITIVE_PARAMETERS = ["username"]  # in the log; some people type their password there
AXES_RESET_ON_SUCCESS = True
AUTH_PASSWORD_VALIDATORS = [{"NAME": f"django.contrib.auth.password_validation.{name}"} for name in ("MinimumLengthValidator", "CommonPasswordValidator")]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATA_UPLOAD_MAX_MEMORY_SIZE = 262_144  # there are no uploads, and each form is in memory
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # serves the styles of docs and admin without collectstatic, behind any server

# HTTPS. A proxy terminates TLS, and says in X-Forwarded-Proto how it was reached. housing.proxies keeps these headers of trusted proxies only.

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
USE_X_FORWARDED_HOST = read("DJANGO_USE_X_FORWARDED_HOST")
TRUSTED_PROXIES = read("FORWARDED_ALLOW_IPS")
CSRF_TRUSTED_ORIGINS = read("DJANGO_CSRF_TRUSTED_ORIGINS") or []
SECURE_SSL_REDIRECT = read("DJANGO_SECURE_SSL_REDIRECT")
SECURE_HSTS_SECONDS = read("DJANGO_SECURE_HSTS_SECONDS")
SECURE_HSTS_INCLUDE_SUBDOMAINS = read("DJANGO_SECURE_HSTS_INCLUDE_SUBDOMAINS")
SECURE_HSTS_PRELOAD = read("DJANGO_SECURE_HSTS_PRELOAD")
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # the default one makes a signer for each request
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG
# Subdomains and browsers' lists concern a whole domain, which may serve more than this. An operator decides, and no warning should ask for it.
# housing.policies is the middleware that W002 looks for.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021", "security.W002"]
if not set(ALLOWED_HOSTS) - set(THIS_MACHINE):
    SILENCED_SYSTEM_CHECKS += ["security.W004", "security.W008"]  # browsers trust this machine without TLS, and there is nothing to redirect to

REST_FRAMEWORK: dict[str, object] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],  # everybody gets the same bytes
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "housing.negotiation.Negotiation",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer", "housing.home.BrowsablePage"],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "housing.schema.Schema",
    "URL_FORMAT_OVERRIDE": None,  # the Accept header alone chooses the format
}
if API_THROTTLE := read("DJANGO_API_THROTTLE"):
    REST_FRAMEWORK |= {"DEFAULT_THROTTLE_CLASSES": ["housing.throttling.Throttle"], "DEFAULT_THROTTLE_RATES": {"api": API_THROTTLE}, "NUM_PROXIES": 0}
SPECTACULAR_SETTINGS = {
    "TITLE": "Housing",
    "DESCRIPTION": (
        "Property listings in three variants with the same bytes: naive (61 SQL queries), optimized (1), and cached (1, then 0, and never stale).\n\n"
        "An empty query parameter counts as absent, an unknown one is ignored, and a repeated one is refused with 400. "
        "To read all pages, send the parameters of `next` until it is null. Prices and other decimal numbers are strings."
    ),
    "VERSION": "1.0.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": False},  # links to operations would be inside of their buttons, where no screen reader finds them
}

DEFAULT_EXCEPTION_REPORTER, DEFAULT_EXCEPTION_REPORTER_FILTER = "housing.error_page.Reporter", "housing.error_page.Filter"
LOG_FORMAT = read("DJANGO_LOG_FORMAT")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "housing.logs.Line"}, "json": {"()": "housing.logs.JSONLine"}},
    "filters": {"operators": {"()": "housing.logs.Operators"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT},
        "django": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT, "filters": ["operators"]},
    },
    "loggers": {
        "housing": {"handlers": ["console"], "level": "INFO"},
        "axes": {"handlers": ["console"], "level": "WARNING"},
        "django": {"handlers": ["django"], "level": "INFO"},
    },
}
