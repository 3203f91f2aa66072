"""The models: offices employ agents, agents list properties, and properties have a location and images."""

from __future__ import annotations

from typing import Any

from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone


class Office(models.Model):
    """An agency's office."""

    name = models.CharField(max_length=200)
    city = models.CharField(max_length=100, null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Agent(models.Model):
    """The agent who sells a property."""

    name = models.CharField(max_length=200)
    email = models.EmailField(null=True, blank=True)
    office = models.ForeignKey(Office, on_delete=models.CASCADE, related_name="agents")

    def __str__(self) -> str:
        return self.name


class Location(models.Model):
    """The location of a property. Coordinates are in degrees (WGS 84)."""

    city = models.CharField(max_length=100, db_index=True)
    state = models.CharField(max_length=100, null=True, blank=True)
    zip_code = models.CharField(max_length=20, null=True, blank=True)
    latitude = models.DecimalField(max_digits=9, decimal_places=6, null=True, blank=True)
    longitude = models.DecimalField(max_digits=9, decimal_places=6, null=True, blank=True)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.city, self.state, self.zip_code) if part)


class Property(models.Model):
    """A listing. `price` is in the currency of the portal, `area` in square metres."""

    class Type(models.TextChoices):
        """The kind of property."""

        HOUSE = "house"
        APARTMENT = "apartment"
        TOWNHOUSE = "townhouse"
        LAND = "land"

    class Status(models.TextChoices):
        """The state of the sale."""

        AVAILABLE = "available"
        PENDING = "pending"
        SOLD = "sold"
        WITHDRAWN = "withdrawn"

    title = models.CharField(max_length=200)
    description = models.TextField(null=True, blank=True)
    property_type = models.CharField(max_length=20, choices=Type, default=Type.HOUSE)
    status = models.CharField(max_length=20, choices=Status, default=Status.AVAILABLE)
    price = models.DecimalField(max_digits=12, decimal_places=2, validators=[MinValueValidator(0)])
    bedrooms = models.PositiveSmallIntegerField(null=True, blank=True)
    bathrooms = models.DecimalField(max_digits=4, decimal_places=2, null=True, blank=True, validators=[MinValueValidator(0)])
    area = models.DecimalField(max_digits=10, decimal_places=2, null=True, blank=True, validators=[MinValueValidator(0)])
    location = models.ForeignKey(Location, on_delete=models.CASCADE, related_name="properties")
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="properties", db_index=False)  # two of the indexes below begin with this column
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)
    record_hash = models.CharField(
        max_length=64, null=True, unique=True, editable=False, help_text="SHA-256 of the imported row, which identifies it in later imports."
    )

    source_id = models.CharField(
        max_length=200, null=True, unique=True, editable=False, help_text="The id in the imported file, by which a changed row updates the property."
    )

    class Meta:
        verbose_name_plural = "properties"
        # Each index has the equality column first, then the order, then the id, so that a page is one range of the index. No index fits a range
        # that is ordered by another column. The first two indexes therefore include price and bedrooms, so that rows outside the range are skipped
        # without being fetched. PostgreSQL has more indexes for `search`, `city` and `office` (migrations 0003 and 0004).
        indexes = [
            models.Index(fields=["created_at", "id", "price", "bedrooms"], name="property_newest"),
            models.Index(fields=["price", "id", "bedrooms"], name="property_price"),
            models.Index(fields=["status", "created_at", "id"], name="property_status_newest"),
            models.Index(fields=["status", "price", "id"], name="property_status_price"),
            models.Index(fields=["property_type", "created_at", "id"], name="property_type_newest"),
            models.Index(fields=["property_type", "price", "id"], name="property_type_price"),
            models.Index(fields=["agent", "created_at", "id"], name="property_agent_newest"),
            models.Index(fields=["agent", "price", "id"], name="property_agent_price"),
            models.Index(fields=["bedrooms"], name="property_bedrooms"),
        ]

    def __str__(self) -> str:
        return self.title

    def _do_update(self, base_qs: Any, using: Any, pk_val: Any, values: Any, *args: Any) -> Any:
        """Leave out `created_at`, which never changes after creation."""
        kept = [value for value in values if value[0].name != "created_at"]
        return super()._do_update(base_qs, using, pk_val, kept, *args)


class PropertyImage(models.Model):
    """A picture of a property; the detail shows them by `position`."""

    property = models.ForeignKey(Property, on_delete=models.CASCADE, related_name="images")
    url = models.URLField()
    caption = models.CharField(max_length=200, null=True, blank=True)
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return self.caption or self.url
