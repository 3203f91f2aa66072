"""The process of the blog. It runs the code of a spec, as `manage.py shell` would, and prints each result as one line of JSON.

python shell.py mysite
"""

import ast
import contextlib
import json
import logging
import os
import sys
import textwrap
import traceback

os.environ["DJANGO_SETTINGS_MODULE"] = f"{sys.argv[1]}.settings"

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.management.color import no_style  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.db.models import F, Q  # noqa: E402
from django.test import Client, RequestFactory  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402
from django.utils import timezone, translation  # noqa: E402
from freshness import ours, watchman  # noqa: E402
from freshness.journal import journal  # noqa: E402
from freshness.statements import CONTROL  # noqa: E402
from posts.models import Author, Comment, Label, Like, Part, Post, Series  # noqa: E402
from posts.other_views import CachedView, Likes, ListAPIView, PagedPosts  # noqa: E402

Labelled = Post.labels.through

__all__ = ["CachedView", "F", "Likes", "ListAPIView", "PagedPosts", "Part", "Q", "RequestFactory", "timezone", "translation"]

logged: list[str] = []
"""The messages that were logged since the spec began."""


class Recorder(logging.Handler):
    """Keeps the messages of the engine."""

    def emit(self, record):
        logged.append(record.getMessage())


engine = logging.getLogger("freshness")
engine.addHandler(Recorder())
engine.setLevel(logging.WARNING)


def a_client(user=None):
    """A client, logged in as this user if one is given."""
    client = Client(HTTP_HOST="localhost")
    if user:
        client.force_login(User.objects.get(username=user))
    return client


def read(path, **headers):
    """Send a GET request, and return the response with its queries."""
    client = headers.pop("client", None) or a_client()
    with CaptureQueriesContext(connection) as sent:
        response = client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    queries = [each["sql"] for each in sent if not CONTROL.match(each["sql"]) and each["sql"] not in ("COMMIT", "ROLLBACK")]
    body = response.getvalue().decode()
    came_from = response.headers.get("Cache-Status", "").removeprefix("freshness; ")
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    return {"status": response.status_code, "came_from": came_from, "queries": queries, "body": body, "json": json.loads(body) if is_json else None}


def start():
    """Reset the blog to the same posts for every spec, and to a cold cache."""
    emptied = [table for table in connection.introspection.django_table_names() if table.startswith(("posts_", "auth_user", "django_admin", "django_session"))]
    names, posts = ["ada", "grace", "linus"], [(1, "Notes"), (1, "Engines"), (2, "Compilers")]
    with transaction.atomic():
        with connection.cursor() as cursor:
            for sql in connection.ops.sql_flush(no_style(), emptied, reset_sequences=True):
                cursor.execute(sql)
        User.objects.bulk_create([User(username=name) for name in names])
        Author.objects.bulk_create([Author(user_id=number) for number in (1, 2, 3)])
        Post.objects.bulk_create([Post(author_id=author, title=title) for author, title in posts])
        Comment.objects.bulk_create([Comment(post_id=number, text=f"On {title}") for number, (_, title) in enumerate(posts, 1)])
        Label.objects.bulk_create([Label(name="maths"), Label(name="ships")])
        Labelled.objects.bulk_create([Labelled(post_id=post, label_id=label) for post, label in [(1, 1), (3, 1), (3, 2)]])
        Series.objects.create(name="Beginnings").posts.add(1, 2, through_defaults={"position": 1})
        Like.objects.create(liked=Post.objects.get(id=1), by="linus")
    cache.delete_pattern("*")
    cold()


def cold():
    """Begin a new, verified journal and an empty log. No other process writes, so the journal need not recover."""
    journal.begin()
    watchman.verify(ours())
    logged.clear()


def after(source, pages):
    """Warm these pages, run a write, and read them again, once from the cache and once inside a transaction, which bypasses it."""
    cold = {page: read(page) for page in pages}
    run(source)
    seen = {page: read(page) for page in pages}
    with transaction.atomic():
        return {page: [cold[page], seen[page], read(page)] for page in pages}


def message_of(act):
    """The message of the error that a function raises."""
    try:
        act()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def run(source):
    """Run Python code, and return the value of its last expression, if it ends with one."""
    tree = ast.parse(textwrap.dedent(source))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<spec>", "exec"), globals())
    return eval(compile(ast.Expression(last.value), "<spec>", "eval"), globals()) if last else None


if __name__ == "__main__":
    call_command("makemigrations", "posts", verbosity=0)
    call_command("migrate", verbosity=0)
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                reply = {"value": run(json.loads(line))}
        except Exception:  # noqa: BLE001  # the spec gets to see it
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply, default=str), flush=True)  # noqa: T201
