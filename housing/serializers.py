"""The response format: a property with its location, its agent and the agent's office. The detail also has the images.

Every field is read-only, so the schema promises that a response has all of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import orjson
from rest_framework import serializers

from housing.models import Agent, Location, Office, Property, PropertyImage


class OfficeSerializer(serializers.ModelSerializer[Office]):
    """An agency's office."""

    class Meta:
        model = Office
        read_only_fields = fields = ["id", "name", "city"]


class AgentSerializer(serializers.ModelSerializer[Agent]):
    """The agent who sells a property."""

    office = OfficeSerializer(read_only=True)

    class Meta:
        model = Agent
        read_only_fields = fields = ["id", "name", "email", "office"]


class LocationSerializer(serializers.ModelSerializer[Location]):
    """The location of a property."""

    class Meta:
        model = Location
        read_only_fields = fields = ["id", "city", "state", "zip_code", "latitude", "longitude"]


class PropertyImageSerializer(serializers.ModelSerializer[PropertyImage]):
    """A picture of a property."""

    class Meta:
        model = PropertyImage
        read_only_fields = fields = ["id", "url", "caption", "position"]


class PropertySerializer(serializers.ModelSerializer[Property]):
    """A row of a list."""

    created_at = serializers.DateTimeField(default_timezone=datetime.UTC, read_only=True)  # not the time zone of the request
    updated_at = serializers.DateTimeField(default_timezone=datetime.UTC, read_only=True)
    location = LocationSerializer(read_only=True)
    agent = AgentSerializer(read_only=True)

    class Meta:
        model = Property
        read_only_fields = fields = [
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
    """One property with its images."""

    images = PropertyImageSerializer(many=True, read_only=True)

    class Meta(PropertySerializer.Meta):
        read_only_fields = fields = [*PropertySerializer.Meta.fields, "images"]


# The same output, faster

Row = tuple[Any, ...]

AS_THEY_ARE = (serializers.BigIntegerField, serializers.CharField, serializers.ChoiceField, serializers.EmailField, serializers.IntegerField)
"""Fields whose output is the value of the column."""


class Columns:
    """A serializer compiled to the columns of one flat SELECT, without model instances.

    `paths` are the columns for `values_list()`. `show` turns one row into the output that `to_representation` gives for an instance. Raises TypeError
    if a field of the serializer is not a column.
    """

    def __init__(self, serializer: serializers.BaseSerializer[Any]) -> None:
        self.paths: list[str] = []
        self.show = self._shape(serializer, "")

    def pick(self, row: Row, path: str) -> Any:
        """Return one column of a row, by its path."""
        return row[self.paths.index(path)]

    def _shape(self, serializer: Any, prefix: str) -> Callable[[Row], dict[str, Any]]:
        """Most fields of a row are taken in one step. Then the others replace what stands at their names."""
        places, nested, converted = [], [], []
        for name, field in serializer.fields.items():
            place = len(self.paths)
            places.append(place)  # of a nested serializer its first column, which is replaced
            if isinstance(field, serializers.ModelSerializer):
                nested.append((name, self._shape(field, f"{prefix}{field.source}__")))
                continue
            self.paths.append(prefix + field.source)
            if type(field) in QUICKER:
                converted.append((name, place, QUICKER[type(field)](field)))
            elif type(field) not in AS_THEY_ARE:
                raise TypeError(f"The field {field.field_name} ({type(field).__name__}) is not a plain column. Serialize model instances instead.")
        return _row(list(serializer.fields), places, nested, converted)


def _row(names: list[str], places: list[int], nested: list[tuple[str, Any]], converted: list[tuple[str, int, Any]]) -> Callable[[Row], dict[str, Any]]:
    def shown(row: Row) -> dict[str, Any]:
        found = dict(zip(names, [row[place] for place in places], strict=True))
        for name, place, convert in converted:
            if (value := row[place]) is not None:
                found[name] = convert(value)
        for name, shape in nested:
            found[name] = shape(row)
        return found

    return shown


def _decimal(field: serializers.DecimalField) -> Callable[[Any], Any]:
    exponent = -(field.decimal_places or 0)
    return lambda value: format(value, "f") if value.as_tuple().exponent == exponent else field.to_representation(value)


def _instant(field: serializers.DateTimeField) -> Callable[[Any], Any]:
    def convert(value: datetime.datetime) -> Any:
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else field.to_representation(value)

    return convert


QUICKER: dict[type, Callable[[Any], Callable[[Any], Any]]] = {serializers.DecimalField: _decimal, serializers.DateTimeField: _instant}
"""Fields with a faster conversion for values that already have the output format."""


def rendered(shown: Any) -> bytes:
    """Return the bytes of DRF's JSONRenderer, which escapes U+2028 and U+2029 for old JavaScript parsers."""
    return orjson.dumps(shown).replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
