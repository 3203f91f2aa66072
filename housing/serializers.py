"""What leaves: a property with its location, its agent and the agent's office; in the detail, its images too."""

import datetime

from rest_framework import serializers

from housing.models import Agent, Location, Office, Property, PropertyImage


class OfficeSerializer(serializers.ModelSerializer[Office]):
    """An agency's office."""

    class Meta:
        model = Office
        fields = ["id", "name", "city"]


class AgentSerializer(serializers.ModelSerializer[Agent]):
    """Who sells a property."""

    office = OfficeSerializer()

    class Meta:
        model = Agent
        fields = ["id", "name", "email", "office"]


class LocationSerializer(serializers.ModelSerializer[Location]):
    """Where a property stands."""

    class Meta:
        model = Location
        fields = ["id", "city", "state", "zip_code", "latitude", "longitude"]


class PropertyImageSerializer(serializers.ModelSerializer[PropertyImage]):
    """A picture of a property."""

    class Meta:
        model = PropertyImage
        fields = ["id", "url", "caption", "position"]


class PropertySerializer(serializers.ModelSerializer[Property]):
    """A row of a list."""

    created_at = serializers.DateTimeField(default_timezone=datetime.UTC)  # not that of whoever asks
    updated_at = serializers.DateTimeField(default_timezone=datetime.UTC)
    location = LocationSerializer()
    agent = AgentSerializer()

    class Meta:
        model = Property
        fields = [
            "id",
            "title",
            "description",
            "property_type",
            "status",
            "price",
            "bedrooms",
            "bathrooms",
            "area",
            "created_at",
            "updated_at",
            "location",
            "agent",
        ]


class PropertyDetailSerializer(PropertySerializer):
    """One property."""

    images = PropertyImageSerializer(many=True)

    class Meta(PropertySerializer.Meta):
        fields = [*PropertySerializer.Meta.fields, "images"]
