"""More DRF views, cached in the same way."""

import json

from django.db import connection
from django.db.models import Count, F, Window
from django.db.models.functions import Rank
from django.http import StreamingHttpResponse
from freshness import CachedView
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.filters import OrderingFilter, SearchFilter
from rest_framework.generics import CreateAPIView, ListAPIView, RetrieveAPIView
from rest_framework.pagination import CursorPagination, LimitOffsetPagination, PageNumberPagination
from rest_framework.permissions import IsAuthenticatedOrReadOnly
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet

from .models import Label, Like, Post, Series
from .serializers import CountedSerializer, LabelSerializer, LikesSerializer, PostDetailSerializer, PostSerializer, RankedSerializer, SeriesSerializer


class Pages(PageNumberPagination):
    page_size = 2


class Cursors(CursorPagination):
    page_size = 2
    ordering = "-id"


class Offsets(LimitOffsetPagination):
    default_limit = 2


class PagedPosts(CachedView, ListAPIView):
    queryset = Post.objects.select_related("author__user").order_by("-id")
    serializer_class = PostSerializer
    pagination_class = Pages


class CursorPosts(PagedPosts):
    pagination_class = Cursors


class OffsetPosts(PagedPosts):
    pagination_class = Offsets


class SearchedPosts(PagedPosts):
    filter_backends = [SearchFilter, OrderingFilter]
    search_fields = ["title", "author__user__username", "labels__name"]
    ordering_fields = ["title", "author__user__username"]


class CountedPosts(CachedView, ListAPIView):
    queryset = Post.objects.annotate(comments_count=Count("comments")).order_by("id")
    serializer_class = CountedSerializer


class Labels(CachedView, ListAPIView):
    queryset = Label.objects.prefetch_related("posts").order_by("id")
    serializer_class = LabelSerializer


class AllSeries(CachedView, ListAPIView):
    queryset = Series.objects.prefetch_related("posts", "part_set__post").order_by("id")
    serializer_class = SeriesSerializer


class LikedPosts(CachedView, ListAPIView):
    queryset = Post.objects.prefetch_related("likes").order_by("id")
    serializer_class = LikesSerializer


class LikeSerializer(serializers.ModelSerializer):
    liked = serializers.StringRelatedField()
    model = serializers.CharField(source="content_type.model")

    class Meta:
        model = Like
        fields = ["by", "liked", "model"]


class Likes(CachedView, ListAPIView):
    queryset = Like.objects.prefetch_related("liked").select_related("content_type").order_by("id")
    serializer_class = LikeSerializer


class PostViewSet(CachedView, ModelViewSet):
    queryset = Post.objects.select_related("author__user").prefetch_related("labels", "comments").order_by("-id")
    serializer_class = PostDetailSerializer
    permission_classes = [IsAuthenticatedOrReadOnly]

    @action(detail=True)
    def label_names(self, request, pk=None):
        return Response([label.name for label in self.get_object().labels.order_by("name")])


class Twice(AnonRateThrottle):
    rate = "2/day"


class ThrottledPosts(PagedPosts):
    throttle_classes = [Twice]


class PostsFor(CachedView, ListAPIView):
    """Posts of an author who depends on the request. The URLconf sets `author_of`, which returns the username."""

    queryset = Post.objects.none()  # for the checks, which need the model of a view
    serializer_class = PostSerializer
    author_of = None

    def get_queryset(self):
        name = self.author_of(self.request)
        return Post.objects.select_related("author__user").filter(author__user__username=name or "ada")


class ShuffledPosts(CachedView, ListAPIView):
    queryset = Post.objects.select_related("author__user").order_by("?")
    serializer_class = PostSerializer


class RankedPosts(PagedPosts):
    queryset = Post.objects.select_related("author__user").annotate(rank=Window(Rank(), order_by=F("created_at").asc()))
    serializer_class = RankedSerializer
    pagination_class = Cursors


class ViewedPost(CachedView, RetrieveAPIView):
    queryset = Post.objects.all()
    serializer_class = PostSerializer

    def get_object(self):
        post = super().get_object()
        Post.objects.filter(pk=post.pk).update(body="seen")
        return post


class RespondedPosts(CachedView, APIView):
    """A view without a serializer. The URLconf sets `respond`, which makes the response."""

    respond = Response

    def get(self, request):
        return self.respond(list(Post.objects.order_by("id").values_list("title", flat=True)))


def with_cookie(titles):
    response = Response(titles)
    response.set_cookie("seen", "yes")
    return response


def with_stream(titles):
    return StreamingHttpResponse(json.dumps(titles), content_type="application/json")


def counted_in_sql(titles):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE posts_post SET body = body || 'x'")
    return Response(titles)


class NewPost(CachedView, CreateAPIView):
    queryset = Post.objects.all()
    serializer_class = PostSerializer
