"""Typical DRF views, cached. The views of `tests/fixtures/blog/other_views.py` run with DRF's default settings in the blog of the previous chapter."""

from __future__ import annotations

import re

import pytest

from housing.freshness.views import READ_BY_EVERYBODY
from tests.fixtures.blogs import Blog, Response, readme

# Views

OTHER = {
    "/other/paged/": (2, "PageNumberPagination counts the posts, then reads a page"),
    "/other/paged/?page=2": (2, "PageNumberPagination counts the posts, then reads a page"),
    "/other/cursor/": (1, "CursorPagination reads one extra row, and counts nothing"),
    "/other/offset/?offset=1": (2, "LimitOffsetPagination counts the posts, then reads a page"),
    "/other/searched/?search=maths&ordering=title": (2, "SearchFilter joins what it searches; the posts are counted, then read"),
    "/other/counted/": (1, "annotate(Count(…)) groups in the same SELECT"),
    "/other/ranked/": (1, "a window is part of the same SELECT"),
    "/other/labels/": (2, "the labels, then the posts of all labels"),
    "/other/series/": (4, "the series, their posts, the rows of the through model, and the posts of those"),
    "/other/liked/": (2, "the posts, then the likes that refer to them by content type"),
    "/other/set/": (3, "the posts, their labels, their comments"),
    "/other/set/1/": (3, "the post, its labels, its comments"),
    "/other/set/1/label_names/": (4, "the post with what its viewset prefetches, and its labels in order"),
    "/other/set.json": (3, "a format suffix changes nothing"),
    "/other/set/?format=json": (3, "?format=json changes nothing"),
    "/other/by-parameter/?author=grace": (1, "a query parameter is part of the key"),
    "/other/plain/": (1, "a view without a serializer sends the one query that it has"),
}


@pytest.mark.parametrize("path", OTHER)
def test_paginations_filters_annotations_prefetches_and_viewsets_are_cached(blog: Blog, path: str) -> None:
    """None of these views needs more than `CachedView` as a base class."""
    queries, because = OTHER[path]

    blog.costs(path, queries, because=because)


@pytest.mark.parametrize(
    "write",
    [
        "Post.objects.filter(id=1).update(title='Zeal')",
        "Post.objects.filter(id=1).delete()",
        "Post.objects.create(author_id=2, title='Last')",
        "Post.objects.filter(id=1).update(author_id=F('author_id') + 1)",
        "Label.objects.get(id=2).posts.set([1, 2])",
        "Label.objects.filter(id=1).update(name='logic')",
        "User.objects.filter(id=1).update(username='augusta')",
        "Comment.objects.create(post_id=1, text='More')",
        "Comment.objects.filter(id=1).update(post_id=2)",
        "Part.objects.filter(post_id=2).update(position=9)",
        "Series.objects.get(id=1).posts.add(3, through_defaults={'position': 3})",
        "Series.objects.get(id=1).posts.remove(1)",
        "Post.objects.get(id=1).likes.all().delete()",
    ],
)
def test_every_write_to_a_blog_is_in_the_next_read_of_each_of_its_pages(blog: Blog, write: str) -> None:
    """The blog copied the engine. After the write, each page is compared with the database."""
    seen = blog.after(write, tuple(OTHER))

    assert seen.warm < seen.pages.keys()


def test_a_write_that_no_page_shows_leaves_every_page_warm(blog: Blog) -> None:
    """A series without posts and a label without posts are on none of these pages."""
    seen = blog.after("Series.objects.create(name='Empty'); Label.objects.create(name='New')", ("/other/paged/", "/other/counted/", "/other/set/1/"))

    assert seen.warm == seen.pages.keys()


def test_a_deletion_moves_the_ranks_of_the_remaining_rows(blog: Blog) -> None:
    """The page did not show the deleted post, but a window function reads more rows than the page shows."""
    blog.run("Post.objects.create(author_id=1, title='Fourth')")

    seen = blog.after("Post.objects.filter(id=1).delete()", ("/other/ranked/",))

    assert [row["rank"] for row in seen["/other/ranked/"]["results"]] == [3, 2]


@pytest.mark.parametrize("path", ["/other/set/", "/other/set/1/", "/other/paged/", "/other/cursor/", "/other/searched/", "/posts/1/"])
def test_the_browsable_page_is_rendered_around_the_cached_bytes(blog: Blog, path: str) -> None:
    """DRF's default settings offer this page to every browser, so it must not cost a query either."""
    blog.read(path, accept="text/html")

    page = blog.read(path, accept="text/html")

    assert (page.status, page.came_from, page.queries) == (200, "hit", [])
    assert "HTTP 200 OK" in page.body


def test_the_browsable_page_of_a_missing_object_is_not_found(blog: Blog) -> None:
    """It is a page, too, and says what the JSON says."""
    page = blog.read("/posts/999/", accept="text/html")

    assert (page.status, page.came_from) == (404, blog.read("/posts/999/").came_from)
    assert "HTTP 404 Not Found" in page.body


@pytest.mark.parametrize("path", ["/posts/1/?format=api", "/other/set/?format=api", "/other/set.api", "/other/set/1.api"])
def test_a_url_that_requests_the_browsable_page_gets_it(blog: Blog, path: str) -> None:
    """`?format=api` and the suffix `.api` request the page. The entry below it is JSON, as for any other URL."""
    assert [blog.read(path).came_from for _ in range(2)] == ["fwd=miss; stored", "hit"]
    assert "HTTP 200 OK" in blog.read(path).body


def test_a_client_without_a_preference_gets_the_format_that_the_view_prefers(blog: Blog) -> None:
    """The JSON of the same view is cached for clients that request JSON."""
    assert "HTTP 200 OK" in blog.read("/other/pages-first/").body
    assert blog.read("/other/pages-first/", accept="application/json").came_from == "hit"


def test_a_view_without_get_returns_405(blog: Blog) -> None:
    """`CachedView` must not add a GET that the view does not have."""
    for accept in ("application/json", "text/html"):
        assert (blog.read("/other/post-only/", accept=accept).status, blog.read("/other/post-only/").came_from) == (405, "")


def test_links_lead_to_the_host_of_the_request(blog: Blog) -> None:
    """CursorPagination puts the host into its links, so the host is part of the key."""
    for host in ("localhost", "127.0.0.1"):
        assert blog.read("/other/cursor/", host=host).json["next"].startswith(f"http://{host}/other/cursor/?cursor=")


def test_the_order_of_the_query_parameters_does_not_change_the_response(blog: Blog) -> None:
    """Otherwise the order of the first reader's parameters would be in everybody's links."""
    first = blog.read("/other/searched/?search=ada&ordering=title&page=1")
    second = blog.read("/other/searched/?page=1&ordering=title&search=ada")

    assert (second.came_from, second.body) == ("hit", first.body)


def test_each_language_and_each_time_zone_has_its_own_entry(blog: Blog) -> None:
    """A middleware may set both for each reader, translations follow the language, and DRF renders dates in the current time zone."""
    words = [blog.run(f"with translation.override({language!r}): found = read('/other/translated/')\nfound")["json"] for language in ("en", "de")]
    assert words == ["Yes", "Ja"]

    blog.run("Post.objects.update(created_at='2026-01-01T00:00Z')")
    dates = [blog.run(f"with timezone.override({name!r}): found = read('/posts/1/')\nfound")["json"]["created_at"] for name in (None, "Asia/Tokyo")]
    assert dates == ["2026-01-01T00:00:00Z", "2026-01-01T09:00:00+09:00"]


def test_an_asgi_server_uses_the_same_entries(blog: Blog) -> None:
    """An ASGI request has another class, and Django calls the view in another thread."""
    seen = blog.run("""
        import asyncio
        from django.test import AsyncClient
        def cache_status(path):
            return asyncio.run(AsyncClient().get(path)).headers.get("Cache-Status")
        [cache_status(path) for path in ("/posts/", "/posts/", "/other/by-header/", "/other/by-user/")]
    """)

    unverified = "freshness; fwd=bypass; detail=unverified"
    assert seen == ["freshness; fwd=miss; stored", "freshness; hit", unverified, unverified]
    assert blog.read("/posts/", host="testserver").came_from == "hit"


def test_arguments_of_as_view_reach_the_cached_response(blog: Blog) -> None:
    """`as_view(pagination_class=None)` in a URLconf works like an attribute of the class."""
    rows = blog.run("""
        view = PagedPosts.as_view(pagination_class=None)
        json.loads(view(RequestFactory().get("/", headers={"host": "localhost"})).content)
    """)

    assert [row["id"] for row in rows] == [3, 2, 1]


def test_a_throttle_counts_hits_too(blog: Blog) -> None:
    """A throttle limits requests, whether they cost a query or not."""
    assert [blog.read("/other/throttled/").status for _ in range(3)] == [200, 200, 429]


# Permissions, and views that depend on the reader


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("permission_classes = [IsAuthenticated]", "IsAuthenticated"),
        ("permission_classes = [IsAuthenticatedOrReadOnly, IsAdminUser]", "IsAdminUser"),
        ("get_permissions = lambda self: [IsAdminUser()]", r"View\.get_permissions\(\)"),
        ("check_object_permissions = lambda self, request, post: None", r"View\.check_object_permissions\(\)"),
    ],
)
def test_a_view_that_not_everybody_may_read_is_refused_when_it_is_loaded(blog: Blog, line: str, refused: str) -> None:
    """A cached response is shared by all readers, so a restricted one would leak."""
    message = blog.error(f"""
        from rest_framework.permissions import IsAdminUser, IsAuthenticated, IsAuthenticatedOrReadOnly
        class View(ListAPIView):
            queryset = Post.objects.all()
            {line}
        class Cached(CachedView, View):
            pass
        Cached.as_view()
    """)

    assert re.match(rf"ImproperlyConfigured: Cached is cached, and a cached response is the same for everybody: it cannot have {refused}\. ", message)


@pytest.mark.parametrize("permission", [each.__name__ for each in READ_BY_EVERYBODY])
def test_a_permission_that_lets_everybody_read_is_accepted_and_listed_in_readme(blog: Blog, permission: str) -> None:
    """They are classes of DRF. A class of a project may allow anything, so it is refused."""
    blog.run(f"from rest_framework import permissions; PagedPosts.as_view(permission_classes=[permissions.{permission}])")

    assert f"`{permission}`" in readme()


def test_a_raw_queryset_is_refused_when_the_view_is_loaded(blog: Blog) -> None:
    """The engine cannot know which tables a raw query reads."""
    message = blog.error("PagedPosts.as_view(queryset=Post.objects.raw('SELECT * FROM posts_post'))")

    assert message.startswith("ImproperlyConfigured: PagedPosts is cached, and the tables that a RawQuerySet reads are not known.")


def test_a_viewset_keeps_the_permissions_of_its_writes(blog: Blog) -> None:
    """With IsAuthenticatedOrReadOnly everybody may read, and a POST is authenticated by DRF."""
    statuses = "[a_client(user).post('/other/set/', {'title': 'New', 'author': 1}).status_code for user in (None, 'ada')]"

    assert blog.run(statuses) == [403, 201]
    assert blog.read("/other/set/").json[0]["title"] == "New"


@pytest.mark.parametrize("accept", ["application/json", "application/json, text/plain, */*"])
def test_a_reader_with_a_session_costs_no_query(blog: Blog, accept: str) -> None:
    """A cached read authenticates nobody, because the response is the same for everybody."""
    blog.run("reader = a_client('ada')")
    anonymous = blog.read("/posts/")
    known = Response(**blog.run(f"read('/posts/', client=reader, accept={accept!r})"))

    assert (known.came_from, known.queries, known.body) == ("hit", [], anonymous.body)


@pytest.mark.parametrize(
    ("path", "dependency"),
    [
        ("by-header", "the header X-Author"),
        ("by-meta", r"request\.META\['HTTP_X_AUTHOR'\]"),
        ("by-presence", r"request\.META\['HTTP_X_AUTHOR'\]"),
        ("by-cookie", r"request\.COOKIES"),
        ("by-body", "the request's body"),
        ("by-raw-body", r"request\.body"),
        ("by-session", r"request\.session"),
        ("by-address", r"request\.META\['REMOTE_ADDR'\]"),
        ("by-user", r"request\.user"),
    ],
)
def test_a_view_that_depends_on_its_reader_is_served_and_never_cached(blog: Blog, path: str, dependency: str) -> None:
    """The key contains only the URL, so another reader would get the response of this one. The log says which access prevented the caching."""
    assert [blog.read(f"/other/{path}/").came_from for _ in range(2)] == ["fwd=bypass; detail=unverified"] * 2
    assert re.fullmatch(rf"Served, but not stored: The view reads {dependency}, but a cached response is the same for everybody\. .*", blog.logged[0])


@pytest.mark.parametrize(("path", "headers"), [("by-header", "headers={'x-author': 'grace'}"), ("by-user", "")])
def test_a_view_that_depends_on_its_reader_gives_each_reader_their_own_response(blog: Blog, path: str, headers: str) -> None:
    """Such a view works as it does without a cache."""
    response = blog.run(f"a_client('grace').get('/other/{path}/', {headers}).json()")

    assert [row["title"] for row in response] == ["Compilers"]
    assert [row["by"]["username"] for row in blog.read(f"/other/{path}/").json] == ["ada", "ada"]


def test_inside_a_transaction_a_view_that_depends_on_its_reader_is_served_like_any_other(blog: Blog) -> None:
    """Nothing is cached inside a transaction, so nothing is logged."""
    assert blog.run("with transaction.atomic():\n    found = read('/other/by-header/')\nfound")["came_from"] == "fwd=bypass; detail=transaction"
    assert blog.logged == []


# Responses that are never cached


def test_a_response_that_shows_an_untracked_model_is_never_cached_and_the_log_says_which(blog: Blog) -> None:
    """The engine does not see writes to that model, so an entry could become stale."""
    read = blog.run("""
        from django.test import override_settings
        with override_settings(FRESHNESS_MODELS=["posts"]):
            found = read("/posts/")
        found
    """)

    assert (read["status"], read["came_from"]) == (200, "fwd=bypass; detail=unverified")
    assert blog.logged == [
        "Served, but not stored: A query on posts.Post cannot be read: It reads auth_user, which is not tracked. Add auth.User to FRESHNESS_MODELS."
    ]


def test_a_response_that_shows_an_untracked_content_type_is_never_cached(blog: Blog) -> None:
    """A generic foreign key reads Django's table of content types."""
    response = "Likes.as_view()(RequestFactory().get('/'))"  # `manage.py check` would report it in a URLconf

    assert blog.run(f"{response}.headers['Cache-Status']") == "freshness; fwd=bypass; detail=unverified"
    assert blog.logged[0].endswith("It reads django_content_type, which is not tracked. Add contenttypes.ContentType to FRESHNESS_MODELS.")


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("with-header", "the header X-Total"),
        ("with-cookie", "the cookie seen"),
        ("with-csv", "the content type text/csv"),
        ("with-stream", "a streamed body"),
    ],
)
def test_a_response_that_is_more_than_json_is_served_whole_and_never_cached(blog: Blog, path: str, extra: str) -> None:
    """A hit returns only the stored bytes, so only the first reader would get the header or the cookie."""
    because = ". A cached response may only have JSON."
    for _ in range(2):
        assert blog.read(f"/other/{path}/").came_from == "fwd=bypass; detail=unverified"
        assert blog.logged[-1] == f"Served, but not stored: The response of RespondedPosts has {extra}{because}"


def test_a_response_that_is_not_cached_keeps_its_headers(blog: Blog) -> None:
    """Only cached responses are limited to their bytes."""
    assert blog.run("a_client().get('/other/with-header/').headers['X-Total']") == "3"


def test_a_database_with_another_engine_is_refused_and_the_error_says_which_to_set(blog: Blog) -> None:
    """The cache would not see writes to that database."""
    message = blog.error("""
        from django.db import connections
        from freshness import ours
        connections.settings["other"] = connections.settings["default"] | {"ENGINE": "django.db.backends.sqlite3"}
        try:
            ours("other")
        finally:
            del connections.settings["other"], connections["other"]
    """)

    assert message == (
        "ImproperlyConfigured: The database 'other' has the engine django.db.backends.sqlite3, whose writes do not invalidate the cache. "
        "Set ENGINE to freshness.postgresql or freshness.sqlite3."
    )


def test_a_response_in_random_order_is_not_cached(blog: Blog) -> None:
    """A cached random order would be the same for everybody until the next write."""
    assert blog.read("/other/shuffled/").came_from == "fwd=bypass; detail=unverified"
    assert "It is random (order_by('?'))" in blog.logged[0]


def test_a_get_that_writes_is_refused(blog: Blog) -> None:
    """A view counter, for example, would count only the misses."""
    message = blog.error("read('/other/viewed/1/')")

    assert message.startswith("NotSupportedError: A cached view writes posts.Post during a GET")
    assert blog.run("Post.objects.get(id=1).body") == ""


@pytest.mark.only("embedded")
def test_a_get_that_writes_with_sql_is_never_cached_and_writes_once(blog: Blog) -> None:
    """The write would race its own fill and run again. (On PostgreSQL a fill is READ ONLY, and the server raises an error.)"""
    assert blog.read("/other/viewed-in-sql/").came_from == "fwd=bypass; detail=unverified"
    assert blog.run("Post.objects.get(id=1).body") == "x"
