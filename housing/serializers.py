"""The response format: a property with its location, its agent and the agent's office. The detail also has the images.

Every field is read-only, so the schema promises that a response has all of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
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

Row = Sequence[Any]

Column = Sequence[Any]
"""The values of one column in all rows."""

Shape = Callable[[list[Column]], list[dict[str, Any]]]

AS_THEY_ARE = (
    *(serializers.BigIntegerField, serializers.CharField, serializers.ChoiceField, serializers.EmailField, serializers.IntegerField),
    serializers.URLField,
)
"""Fields whose output is the value of the column."""


class Columns:
    """A serializer compiled to the columns of one flat SELECT, without model instances.

    `paths` are the columns for `values_list()`. Raises TypeError if a field of the serializer is not a column.
    """

    def __init__(self, serializer: serializers.BaseSerializer[Any]) -> None:
        self.paths: list[str] = []
        self._shown = self._shape(serializer, "")

    def show(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """Return the output that `to_representation` gives for an instance of each row. `rendered` turns it into the same bytes."""
        return self._shown(list(zip(*rows, strict=True)) or [()] * len(self.paths))

    def pick(self, row: Row, path: str) -> Any:
        """Return one column of a row, by its path."""
        return row[self.paths.index(path)]

    def _shape(self, serializer: Any, prefix: str) -> Shape:
        """All rows are converted at once, column by column, which takes a third of the time of one row after the other."""
        places: list[int] = []
        replaced: list[tuple[int, Callable[[list[Column]], Column]]] = []
        for at, field in enumerate(serializer.fields.values()):
            place = len(self.paths)
            places.append(place)  # of a nested serializer its first column, which is replaced
            if isinstance(field, serializers.ModelSerializer):
                replaced.append((at, self._shape(field, f"{prefix}{field.source}__")))
                continue
            self.paths.append(prefix + field.source)
            if type(field) in QUICKER:
                replaced.append((at, QUICKER[type(field)](field, place)))
            elif type(field) not in AS_THEY_ARE:
                raise TypeError(f"The field {field.field_name} ({type(field).__name__}) is not a plain column. Serialize model instances instead.")
        return _shape(list(serializer.fields), places, replaced)


def _shape(names: list[str], places: list[int], replaced: list[tuple[int, Callable[[list[Column]], Column]]]) -> Shape:
    def shown(columns: list[Column]) -> list[dict[str, Any]]:
        found = [columns[place] for place in places]
        for at, made in replaced:
            found[at] = made(columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*found, strict=True)]

    return shown


def _decimals(field: serializers.DecimalField, place: int) -> Callable[[list[Column]], Column]:
    point = -(field.decimal_places or 0) - 1

    def convert(columns: list[Column]) -> Column:
        texts = [value if value is None else format(value, "f") for value in columns[place]]
        return [
            text if text is None or text[point : point + 1] == "." else field.to_representation(value)
            for text, value in zip(texts, columns[place], strict=True)
        ]

    return convert


def _instants(field: serializers.DateTimeField, place: int) -> Callable[[list[Column]], Column]:
    def convert(columns: list[Column]) -> Column:
        return [value if value is None or value.tzinfo is datetime.UTC else field.to_representation(value) for value in columns[place]]

    return convert


QUICKER: dict[type, Callable[[Any, int], Callable[[list[Column]], Column]]] = {serializers.DecimalField: _decimals, serializers.DateTimeField: _instants}
"""Fields with a faster conversion for values that already have the output format. A time in UTC has the format of orjson."""


def rendered(shown: Any) -> bytes:
    """Return the bytes of DRF's JSONRenderer, which escapes U+2028 and U+2029 for old JavaScript parsers."""
    found = orjson.dumps(shown, option=orjson.OPT_UTC_Z)
    return found.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
