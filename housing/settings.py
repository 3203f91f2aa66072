"""The settings for both stacks: DATABASE_URL and REDIS_URL choose the servers. Secure by default."""

import datetime
import re
import socket
import struct
import sys
from pathlib import Path
from urllib.parse import quote

import environ
from django.core.exceptions import ImproperlyConfigured

from housing.redis_url import redis_cache

ROOT = Path(__file__).resolve().parent.parent

env = environ.Env()
if (ROOT / ".env").is_file():
    env.read_env(ROOT / ".env")  # written by `make run`; environment variables take precedence

DEBUG = env.bool("DJANGO_DEBUG", default=False)
SECRET_KEY = env.str("DJANGO_SECRET_KEY", default="debug only" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured("DJANGO_SECRET_KEY is not set. Set it to a long random text, or run `make run`, which writes one into .env.")
ALLOWED_HOSTS = env.list("DJANGO_ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"] if DEBUG else [])

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


DATABASE_URL = env.str("DATABASE_URL", default="") or f"sqlite:///{quote(str(ROOT / 'db.sqlite3'))}"
ENGINES = {"sqlite": "housing.freshness.sqlite3", "postgres": "housing.freshness.postgresql", "postgresql": "housing.freshness.postgresql"}
scheme = DATABASE_URL.partition(":")[0]
if scheme not in ENGINES:
    raise ImproperlyConfigured(f"DATABASE_URL has an unsupported engine: '{scheme}'. Use postgres://USER:PASSWORD@HOST:PORT/NAME, or sqlite:///PATH.")
DATABASES = {"default": env.db_url_config(DATABASE_URL) | {"ENGINE": ENGINES[scheme]}}
from_url = DATABASES["default"].get("OPTIONS", {})
if scheme == "sqlite":
    # A transaction waits for SQLite's write lock when it begins, because one that asks for it later may fail instead.
    # WAL lets readers continue during a write. (https://www.sqlite.org/wal.html, https://www.sqlite.org/lang_transaction.html)
    # `timeout` is how many seconds a writer waits for another one: an import may take that long.
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
else:
    DATABASES["default"] |= {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
    # Nothing waits for ever: neither for a server that does not reply (libpq's least is 2 s) nor for one that vanished without closing its connections.
    options = {"connect_timeout": 2, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 10_000}
    if serves_requests(sys.argv):
        from_url["options"] = f"{REQUEST_TIMEOUTS} {from_url.get('options', '')}".strip()  # PostgreSQL uses the last value of each
        DATABASES["default"]["REPLY_TIMEOUT"] = 6  # more than statement_timeout, which the server enforces while it is alive
DATABASES["default"]["OPTIONS"] = options | from_url

REDIS_URL = env.str("REDIS_URL", default="redis://127.0.0.1:6379/0")
EMBEDDED = REDIS_URL.startswith("fakeredis://")  # fakeredis://HOST:PORT is a TCP server; fakeredis:// runs in this process
# A hit takes less than a millisecond. After 0.2 s without a reply it is better to ask the database, and then nobody waits for FRESHNESS_RETRY seconds.
CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "KEY_PREFIX": "housing"} | redis_cache(REDIS_URL, timeout=0.2)}

# Freshness

FRESHNESS_MODELS = ["housing"]
FRESHNESS_NAME = "housing"
FRESHNESS_METRICS_TOKEN = env.str("FRESHNESS_METRICS_TOKEN", default="")
FRESHNESS_IGNORED_SETTINGS = ["DATABASE_URL", "REDIS_URL"]  # keys contain the identity of the database, and each Redis has its own entries
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
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # serves the styles of docs and admin without collectstatic, behind any server

MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # the default one makes a signer for each request
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG

REST_FRAMEWORK: dict[str, object] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],  # everybody gets the same bytes
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "housing.negotiation.Negotiation",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer", "housing.home.BrowsablePage"],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "housing.schema.Schema",
    "URL_FORMAT_OVERRIDE": None,  # the Accept header alone chooses the format
}
if API_THROTTLE := env.str("DJANGO_API_THROTTLE", default=""):
    REST_FRAMEWORK |= {"DEFAULT_THROTTLE_CLASSES": ["housing.throttling.Throttle"], "DEFAULT_THROTTLE_RATES": {"api": API_THROTTLE}, "NUM_PROXIES": 0}
    if not re.fullmatch(r"[1-9][0-9]*/(second|minute|hour|day)", API_THROTTLE):
        raise ImproperlyConfigured(f"DJANGO_API_THROTTLE is '{API_THROTTLE}'. Use a number of requests and a unit, such as 100/minute.")
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
LOG_FORMAT = env.str("DJANGO_LOG_FORMAT", default="") or "line"
if LOG_FORMAT not in ("line", "json"):
    raise ImproperlyConfigured(f"DJANGO_LOG_FORMAT is '{LOG_FORMAT}'. Use line or json.")
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
