"""The serializers of the blog's API."""

from rest_framework import serializers

from .models import Author, Label, Part, Post, Series


class AuthorSerializer(serializers.ModelSerializer):
    username = serializers.CharField(source="user.username")

    class Meta:
        model = Author
        fields = ["username", "bio"]


class PostSerializer(serializers.ModelSerializer):
    by = AuthorSerializer(source="author", read_only=True)

    class Meta:
        model = Post
        fields = ["id", "title", "created_at", "by", "author"]
        extra_kwargs = {"author": {"write_only": True}}


class PostDetailSerializer(PostSerializer):
    labels = serializers.SlugRelatedField("name", many=True, read_only=True)
    comments = serializers.SlugRelatedField("text", many=True, read_only=True)

    class Meta(PostSerializer.Meta):
        fields = [*PostSerializer.Meta.fields, "body", "labels", "comments"]


class RankedSerializer(serializers.ModelSerializer):
    rank = serializers.IntegerField(read_only=True)

    class Meta:
        model = Post
        fields = ["title", "rank"]


class LabelSerializer(serializers.ModelSerializer):
    posts = serializers.SlugRelatedField("title", many=True, read_only=True)

    class Meta:
        model = Label
        fields = ["name", "posts"]


class CountedSerializer(serializers.ModelSerializer):
    comments = serializers.IntegerField(read_only=True, source="comments_count")

    class Meta:
        model = Post
        fields = ["id", "title", "comments"]


class PartSerializer(serializers.ModelSerializer):
    title = serializers.CharField(source="post.title")

    class Meta:
        model = Part
        fields = ["position", "title"]


class SeriesSerializer(serializers.ModelSerializer):
    parts = PartSerializer(source="part_set", many=True)
    posts = serializers.SlugRelatedField("title", many=True, read_only=True)

    class Meta:
        model = Series
        fields = ["name", "parts", "posts"]


class LikesSerializer(serializers.ModelSerializer):
    likes = serializers.SlugRelatedField("by", many=True, read_only=True)

    class Meta:
        model = Post
        fields = ["title", "likes"]
