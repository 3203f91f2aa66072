"""The URLs of the blog."""

from django.contrib import admin
from django.http import HttpResponse
from django.urls import include, path
from django.utils.translation import gettext
from rest_framework.renderers import BrowsableAPIRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter

from . import other_views
from .models import Author, Comment, Label, Post
from .views import PostDetail, PostList

admin.site.register([Author, Comment, Label, Post])

router = DefaultRouter()
router.register("set", other_views.PostViewSet)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("posts/", PostList.as_view()),
    path("posts/<int:pk>/", PostDetail.as_view()),
    path("other/", include(router.urls)),
    path("other/paged/", other_views.PagedPosts.as_view()),
    path("other/cursor/", other_views.CursorPosts.as_view()),
    path("other/offset/", other_views.OffsetPosts.as_view()),
    path("other/searched/", other_views.SearchedPosts.as_view()),
    path("other/counted/", other_views.CountedPosts.as_view()),
    path("other/labels/", other_views.Labels.as_view()),
    path("other/series/", other_views.AllSeries.as_view()),
    path("other/liked/", other_views.LikedPosts.as_view()),
    path("other/throttled/", other_views.ThrottledPosts.as_view()),
    path("other/ranked/", other_views.RankedPosts.as_view()),
    path("other/viewed/<int:pk>/", other_views.ViewedPost.as_view()),
    path("other/by-header/", other_views.PostsFor.as_view(author_of=lambda request: request.headers.get("X-Author"))),
    path("other/by-meta/", other_views.PostsFor.as_view(author_of=lambda request: request.META.get("HTTP_X_AUTHOR"))),
    path("other/by-presence/", other_views.PostsFor.as_view(author_of=lambda request: "ada" if "HTTP_X_AUTHOR" in request.META else "grace")),
    path("other/by-cookie/", other_views.PostsFor.as_view(author_of=lambda request: request.COOKIES.get("author"))),
    path("other/by-body/", other_views.PostsFor.as_view(author_of=lambda request: request.data.get("author"))),
    path("other/by-raw-body/", other_views.PostsFor.as_view(author_of=lambda request: request._request.body.decode())),
    path("other/by-session/", other_views.PostsFor.as_view(author_of=lambda request: request.session.get("author"))),
    path("other/by-address/", other_views.PostsFor.as_view(author_of=lambda request: {"127.0.0.1": "ada"}.get(request.META["REMOTE_ADDR"]))),
    path("other/by-user/", other_views.PostsFor.as_view(author_of=lambda request: request.user.username)),
    path("other/by-parameter/", other_views.PostsFor.as_view(author_of=lambda request: request.GET.get("author"))),
    path("other/viewed-in-sql/", other_views.RespondedPosts.as_view(respond=other_views.counted_in_sql)),
    path("other/translated/", other_views.RespondedPosts.as_view(respond=lambda titles: Response(gettext("Yes")))),
    path("other/pages-first/", other_views.PagedPosts.as_view(renderer_classes=[BrowsableAPIRenderer, JSONRenderer])),
    path("other/post-only/", other_views.NewPost.as_view()),
    path("other/plain/", other_views.RespondedPosts.as_view()),
    path("other/with-header/", other_views.RespondedPosts.as_view(respond=lambda titles: Response(titles, headers={"X-Total": len(titles)}))),
    path("other/with-cookie/", other_views.RespondedPosts.as_view(respond=other_views.with_cookie)),
    path("other/with-csv/", other_views.RespondedPosts.as_view(respond=lambda titles: HttpResponse("\n".join(titles), content_type="text/csv"))),
    path(
        "other/with-stream/",
        other_views.RespondedPosts.as_view(respond=other_views.with_stream),
    ),
    path("other/shuffled/", other_views.ShuffledPosts.as_view()),
]
