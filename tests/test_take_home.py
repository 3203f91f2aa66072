"""The cache in your own project. A new blog gets the folder `housing/freshness` and the code in the README, and keeps the same promises."""

from __future__ import annotations

import re

import pytest

from tests.fixtures.blogs import BLOG, PROJECT, After, Blog, steps
from tests.fixtures.processes import python

ALL, ADA, GRACE, MATHS, SHIPS = (
    "/posts/",
    "/posts/?author__user__username=ada",
    "/posts/?author__user__username=grace",
    *(f"/posts/?labels__name={name}" for name in ("maths", "ships")),
)
NOTES, ENGINES, COMPILERS = "/posts/1/", "/posts/2/", "/posts/3/"
"""Posts 1 and 2 are by Ada, post 3 is by Grace. Post 1 has the label maths, post 3 has maths and ships."""

PAGES = (ALL, ADA, GRACE, MATHS, SHIPS, NOTES, ENGINES, COMPILERS)


def after(blog: Blog, write: str) -> After:
    """Run a write while PAGES are warm, and read them again."""
    return blog.after(write, PAGES)


# Setting it up


def test_the_blog_needs_at_most_40_lines_about_caching() -> None:
    """These specs run the text of the README. Its views count with all their lines, although half of them would be there without a cache."""
    lines = [line for text in steps().values() for line in text.splitlines() if line.strip()]

    assert steps().keys() == {f"{PROJECT}/settings.py", "posts/views.py"}
    assert len(lines) <= 40


@pytest.mark.parametrize("name", ["models.py", "serializers.py", "urls.py"])
def test_no_other_file_of_the_blog_mentions_the_cache(name: str) -> None:
    """No model has a base class of the engine, and no signal is connected."""
    assert not re.search("freshness|CachedView|cache_page|signals", (BLOG / name).read_text(encoding="utf-8"))


def test_the_folder_imports_nothing_of_this_project(blog: Blog) -> None:
    """Only this folder is copied. An import of `housing` would fail in your project, and a lazy one only at the first request."""
    imports = [line for file in (blog.folder / "freshness").rglob("*.py") for line in file.read_text(encoding="utf-8").splitlines() if "housing" in line]

    assert [line for line in imports if re.match(r"\s*(from|import)\s", line)] == []
    assert blog.run("import sys; 'housing' in sys.modules") is False


def test_django_finds_nothing_wrong_with_the_blog(blog: Blog) -> None:
    """`manage.py check` must report neither an error nor a warning."""
    blog.run("call_command('check', fail_level='WARNING')")


def test_no_migration_is_missing(blog: Blog) -> None:
    """`makemigrations` in your project must not create a migration inside the copied folder."""
    blog.run("call_command('makemigrations', check=True, dry_run=True, verbosity=0)")


# The cost of a read


def test_a_list_costs_1_query_and_then_0(blog: Blog) -> None:
    blog.costs(ALL, 1, because="one SELECT joins each post's author and user")


@pytest.mark.parametrize("path", [ADA, MATHS])
def test_a_filtered_list_costs_1_query_and_then_0(blog: Blog, path: str) -> None:
    """django-filter filters across a join or a many-to-many relation. Each filter has its own entry."""
    blog.costs(path, 1, because="the same SELECT also joins the tables that it filters by")


def test_a_detail_costs_3_queries_and_then_0(blog: Blog) -> None:
    blog.costs(COMPILERS, 3, because="the post is read with its author and user, then its labels, then its comments")


def test_a_warm_read_returns_what_redis_holds(blog: Blog) -> None:
    """This proves that zero queries means a hit: an entry that was changed in Redis is returned."""
    blog.read(ALL)
    blog.run("""
        from django_redis import get_redis_connection
        client = get_redis_connection("default")
        [entry] = [key for key in client.scan_iter(cache.make_key("*")) if client.type(key) == b"hash" and client.hexists(key, "body")]
        client.hset(entry, "body", b'["planted"]')
    """)

    assert blog.read(ALL).json == ["planted"]


def test_a_404_is_not_cached(blog: Blog) -> None:
    """A cached 404 would hide a post that is created later."""
    for _ in range(2):
        missing = blog.read("/posts/4/")
        assert (missing.status, missing.came_from, len(missing.queries)) == (404, "", 1)

    blog.run("Post.objects.create(id=4, author_id=1, title='Here')")

    assert blog.read("/posts/4/").status == 200


# Pages that a write invalidates, and pages that stay warm


def test_a_saved_title_is_in_the_next_read(blog: Blog) -> None:
    """A reader must not see the old title after the save. Pages without this post keep their entries."""
    seen = after(blog, "post = Post.objects.get(id=2); post.title = 'Mills'; post.save()")

    assert seen[ENGINES]["title"] == seen[ALL][1]["title"] == "Mills"
    assert seen.warm >= {NOTES, COMPILERS, SHIPS}


def test_a_changed_date_is_in_the_next_read(blog: Blog) -> None:
    """No column is listed by hand, so every column is covered."""
    seen = after(blog, "Post.objects.filter(id=2).update(created_at='2020-01-01T00:00Z')")

    assert seen[ENGINES]["created_at"] == seen[ALL][1]["created_at"] == "2020-01-01T00:00:00Z"
    assert seen.warm == {GRACE, MATHS, SHIPS, NOTES, COMPILERS}


def test_an_update_through_a_join_is_in_the_next_read(blog: Blog) -> None:
    """`update()` sends no signal."""
    seen = after(blog, "Post.objects.filter(author__user__username='ada').update(title='Gone')")

    assert [row["title"] for row in seen[ALL]] == ["Compilers", "Gone", "Gone"]


def test_bulk_created_posts_are_in_the_next_read(blog: Blog) -> None:
    """`bulk_create()` sends no signal."""
    seen = after(blog, "Post.objects.bulk_create([Post(author_id=2, title='One'), Post(author_id=2, title='Two')])")

    assert [row["title"] for row in seen[GRACE]] == ["Two", "One", "Compilers"]
    assert seen.warm >= {MATHS, SHIPS, NOTES, ENGINES, COMPILERS}


def test_bulk_updated_posts_are_in_the_next_read(blog: Blog) -> None:
    """`bulk_update()` sends no signal."""
    seen = after(
        blog,
        """
        posts = list(Post.objects.filter(author_id=1))
        for post in posts:
            post.title += "!"
        Post.objects.bulk_update(posts, ["title"])
    """,
    )

    assert [row["title"] for row in seen[ADA]] == ["Engines!", "Notes!"]
    assert seen.warm >= {SHIPS, COMPILERS}


def test_an_upsert_is_in_the_next_read(blog: Blog) -> None:
    """Only the database knows which rows an upsert updates."""
    seen = after(
        blog,
        """
        post = Post(id=1, author_id=1, title="Upserted")
        Post.objects.bulk_create([post], update_conflicts=True, unique_fields=["id"], update_fields=["title"])
    """,
    )

    assert seen[NOTES]["title"] == "Upserted"


def test_an_added_label_is_in_the_next_read(blog: Blog) -> None:
    """Only the through table is written, and the detail and the filtered lists read it."""
    seen = after(blog, "Post.objects.get(id=2).labels.add(2)")

    assert seen[ENGINES]["labels"] == ["ships"]
    assert [row["title"] for row in seen[SHIPS]] == ["Compilers", "Engines"]
    assert seen.warm == {ALL, ADA, GRACE, MATHS, NOTES, COMPILERS} - {MATHS}


def test_a_removed_label_is_in_the_next_read(blog: Blog) -> None:
    """`remove()` deletes a row of the through table and saves no post, but the detail and the filtered list change."""
    seen = after(blog, "Post.objects.get(id=1).labels.remove(1)")

    assert seen[NOTES]["labels"] == []
    assert [row["title"] for row in seen[MATHS]] == ["Compilers"]
    assert seen.warm >= {ALL, ADA, GRACE, ENGINES, COMPILERS}


def test_labels_that_are_set_are_in_the_next_read(blog: Blog) -> None:
    """`set()` removes one label and adds another, so the filtered lists of both labels change."""
    seen = after(blog, "Post.objects.get(id=1).labels.set([2])")

    assert seen[NOTES]["labels"] == ["ships"]
    assert [[row["title"] for row in seen[page]] for page in (MATHS, SHIPS)] == [["Compilers"], ["Compilers", "Notes"]]
    assert seen.warm >= {ALL, ADA, GRACE, ENGINES, COMPILERS}


def test_cleared_labels_are_in_the_next_read(blog: Blog) -> None:
    """`clear()` deletes rows of the through table by their post and does not list the labels."""
    seen = after(blog, "Post.objects.get(id=3).labels.clear()")

    assert seen[COMPILERS]["labels"] == seen[SHIPS] == []
    assert seen.warm >= {ALL, ADA, GRACE, NOTES, ENGINES}


def test_posts_set_from_their_label_are_in_the_next_read(blog: Blog) -> None:
    """The through table is written from its other side. No post is saved, but the details of three posts may change."""
    seen = after(blog, "Label.objects.get(name='maths').posts.set([2])")

    assert [row["title"] for row in seen[MATHS]] == ["Engines"]
    assert [seen[page]["labels"] for page in (NOTES, ENGINES, COMPILERS)] == [[], ["maths"], ["ships"]]
    assert seen.warm >= {ALL, ADA, GRACE}


def test_a_renamed_label_is_in_the_next_read_of_the_posts_that_show_it(blog: Blog) -> None:
    """Other posts do not depend on the row."""
    seen = after(blog, "label = Label.objects.get(name='ships'); label.name = 'boats'; label.save()")

    assert (seen[COMPILERS]["labels"], seen[SHIPS]) == (["maths", "boats"], [])
    assert seen.warm >= {ALL, ADA, GRACE, NOTES, ENGINES}


def test_a_renamed_user_is_in_the_next_read_of_the_posts_that_show_them(blog: Blog) -> None:
    """`auth.User` is a model of Django. Adding it to FRESHNESS_MODELS is enough."""
    seen = after(blog, "user = User.objects.get(username='ada'); user.username = 'augusta'; user.save()")

    assert seen[NOTES]["by"]["username"] == seen[ALL][1]["by"]["username"] == "augusta"
    assert seen[ADA] == []
    assert seen.warm >= {SHIPS, COMPILERS}


def test_the_posts_of_a_deleted_user_are_gone_from_the_next_read(blog: Blog) -> None:
    """The deletion cascades over three tables."""
    seen = after(blog, "User.objects.get(username='ada').delete()")

    assert [row["title"] for row in seen[ALL]] == ["Compilers"]
    assert [seen.pages[page].status for page in (NOTES, ENGINES, COMPILERS)] == [404, 404, 200]
    assert COMPILERS in seen.warm


def test_a_new_comment_is_in_the_next_read_of_its_post_alone(blog: Blog) -> None:
    """No other page shows the comment."""
    seen = after(blog, "Comment.objects.create(post_id=1, text='Why?')")

    assert seen[NOTES]["comments"] == ["On Notes", "Why?"]
    assert seen.warm == set(PAGES) - {NOTES}


def test_a_rollback_leaves_every_page_warm(blog: Blog) -> None:
    """Redis first hears of a write at COMMIT."""
    seen = after(
        blog,
        """
        try:
            with transaction.atomic():
                Post.objects.update(title="Never")
                Post.objects.get(id=1).labels.clear()
                User.objects.all().delete()
                raise ValueError
        except ValueError:
            pass
    """,
    )

    assert seen.warm == set(PAGES)


@pytest.mark.parametrize(
    ("sql", "stale"),
    [
        ("UPDATE posts_post SET title = 'Raw' WHERE id = 1", {NOTES, MATHS}),
        ("UPDATE auth_user SET username = 'raw' WHERE username = 'ada'", {NOTES, ADA}),
        ("DELETE FROM posts_post_labels WHERE post_id = 3", {COMPILERS, SHIPS}),
    ],
)
def test_raw_sql_is_in_the_next_read(blog: Blog, sql: str, stale: set[str]) -> None:
    """SQL does not show which rows it writes, so it invalidates every page that reads the table."""
    seen = after(blog, f"with connection.cursor() as cursor: cursor.execute({sql!r})")

    assert not stale & seen.warm


def test_raw_sql_leaves_pages_of_other_tables_warm(blog: Blog) -> None:
    """The text of the statement shows which table it writes."""
    seen = after(blog, "with connection.cursor() as cursor: cursor.execute('DELETE FROM posts_comment')")

    assert seen[NOTES]["comments"] == []
    assert seen.warm == {ALL, ADA, GRACE, MATHS, SHIPS}


def test_a_post_created_through_the_list_view_is_in_the_next_read(blog: Blog) -> None:
    """The view is a ListCreateAPIView, of which only GET is cached."""
    seen = after(blog, "a_client().post('/posts/', {'title': 'Posted', 'author': 2})")

    assert [row["title"] for row in seen[GRACE]] == ["Posted", "Compilers"]
    assert seen.warm >= {MATHS, SHIPS, NOTES, ENGINES, COMPILERS}


def test_a_post_saved_in_the_admin_is_in_the_next_read(blog: Blog) -> None:
    """The admin writes the post and its labels to two tables, and either write alone would leave pages stale."""
    blog.run("User.objects.create_superuser('root')")

    seen = after(
        blog,
        """
        form = {"author": 2, "title": "Edited", "body": "", "created_at_0": "2026-01-01", "created_at_1": "00:00", "labels": [2]}
        a_client("root").post("/admin/posts/post/1/change/", form)
    """,
    )

    assert (seen[NOTES]["title"], seen[NOTES]["labels"], seen[NOTES]["by"]["username"]) == ("Edited", ["ships"], "grace")
    assert seen.warm >= {ENGINES, COMPILERS}


@pytest.mark.only("real")
def test_a_write_by_another_process_is_in_the_next_read(blog: Blog) -> None:
    """The write comes from `manage.py shell`. (Each process has its own fakeredis, so this needs a real Redis.)"""
    blog.read(NOTES)

    shell = python("manage.py", "shell", "-c", "from posts.models import Post; Post.objects.filter(id=1).update(title='Elsewhere')", folder=blog.folder)

    assert shell.code == 0, shell.complained
    assert blog.read(NOTES).json["title"] == "Elsewhere"


NOT_PROMISED = {
    "A filter on the time of day is fresh": (
        "`filter(published__lte=timezone.now())` is a constant in the query, and nothing is written when that time comes. "
        "With `Now()` the response is served and not cached."
    ),
    "A response that depends on an in-memory cache is fresh": (
        "`ContentType.objects.get_for_model()`, `Site.objects.get_current()` and `lru_cache` send no query that the engine could see."
    ),
    "Pages that show a user stay warm when the user logs in": "A login writes `last_login`, and any write to a row invalidates the pages that show the row.",
}
