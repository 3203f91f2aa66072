"""What is stored: offices employ agents, agents list properties, properties stand somewhere and have images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

from django.core.validators import MinValueValidator
from django.db import models, router, transaction
from django.utils import timezone

from housing.freshness.connection import Frame, ours


class TaggedQuerySet(models.QuerySet[Any]):
    """Remembers what a row held when it was read under lock, so that a later save can tell what it changes."""

    def _fetch_all(self) -> None:
        fresh = self._result_cache is None
        super()._fetch_all()
        if fresh and self.query.select_for_update and (not self.query.select_for_update_of or "self" in self.query.select_for_update_of):
            frame = ours(self.db).innermost_frame()
            for row in self._result_cache or ():
                if isinstance(row, TaggedModel):
                    row.locked = (frame, row.pk, {name: row.__dict__[name] for name in row.written_fields() if name in row.__dict__})


class TaggedModel(models.Model):
    """A model whose writes name tags (`signals.py`) in the transaction that carries them."""

    tag: ClassVar[str]
    """What the tags of this model's rows begin with: `agent` for `agent:3`, and `agent:*` for all of them."""

    locked: tuple[Frame | None, Any, dict[str, Any]] | None = None
    """The savepoint under which this row was read FOR UPDATE, its id, and what it held; None if it was not."""

    announced: set[str] | None = None
    """The tags that the save in progress has named, so that its SQL need not name the whole model; None if it has not."""

    objects = TaggedQuerySet.as_manager()

    class Meta:
        abstract = True

    @classmethod
    def written_fields(cls) -> tuple[str, ...]:
        """The columns (attribute names) that a plain `save()` of an existing row writes."""
        return tuple(field.attname for field in cls._meta.concrete_fields if not field.primary_key and field.name != "created_at")

    def save_base(self, raw: bool = False, force_insert: Any = False, force_update: bool = False, using: str | None = None, update_fields: Any = None) -> None:
        """As Django's, in a transaction, so that there is a COMMIT to stand before."""
        using = using or router.db_for_write(type(self), instance=self)
        try:
            with transaction.atomic(using=using, savepoint=False):
                super().save_base(raw, force_insert, force_update, using, update_fields)
        finally:
            self.announced = None

    def _save_table(self, raw: bool, cls: Any, force_insert: Any, force_update: bool, using: str, update_fields: Any) -> bool:
        """As Django's: the one place where a save's own SQL runs, and no receiver's."""
        with ours(using).named_already(self._meta.db_table) if self.announced is not None else nullcontext():
            return bool(super()._save_table(raw, cls, force_insert, force_update, using, update_fields))  # type: ignore[misc]  # not in the stubs

    def _do_update(self, base_qs: Any, using: Any, pk_val: Any, values: Any, *args: Any) -> Any:
        """As Django's, without `created_at`, which never changes after creation."""
        kept = [value for value in values if value[0].name != "created_at"]
        return super()._do_update(base_qs, using, pk_val, kept, *args)

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        """As Django's; what is read without a lock may have changed since."""
        super().refresh_from_db(*args, **kwargs)
        self.locked = None


class Office(TaggedModel):
    """An agency's office."""

    tag = "office"

    name = models.CharField(max_length=200)
    city = models.CharField(max_length=100, null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Agent(TaggedModel):
    """Who sells a property."""

    tag = "agent"

    name = models.CharField(max_length=200)
    email = models.EmailField(null=True, blank=True)
    office = models.ForeignKey(Office, on_delete=models.CASCADE, related_name="agents")

    def __str__(self) -> str:
        return self.name


class Location(TaggedModel):
    """Where a property stands. Coordinates are degrees (WGS 84)."""

    tag = "location"

    city = models.CharField(max_length=100, db_index=True)
    state = models.CharField(max_length=100, null=True, blank=True)
    zip_code = models.CharField(max_length=20, null=True, blank=True)
    latitude = models.DecimalField(max_digits=9, decimal_places=6, null=True, blank=True)
    longitude = models.DecimalField(max_digits=9, decimal_places=6, null=True, blank=True)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.city, self.state, self.zip_code) if part)


class Property(TaggedModel):
    """A listing. `price` is in the currency of the portal, `area` in square metres."""

    tag = "property"

    class Type(models.TextChoices):
        """What kind of building it is."""

        HOUSE = "house"
        APARTMENT = "apartment"
        TOWNHOUSE = "townhouse"
        LAND = "land"

    class Status(models.TextChoices):
        """Where the sale stands."""

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
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="properties", db_index=False)  # two of the indexes below begin with it
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)
    record_hash = models.CharField(
        max_length=64, null=True, unique=True, editable=False, help_text="SHA-256 of the imported record, by which an import knows it again."
    )

    class Meta(TaggedModel.Meta):
        verbose_name_plural = "properties"
        # What is equal first, then the order, then the id: a page is read where it stands, whatever the filter leaves. A range in another
        # order than its own has no such place: the first two carry what it asks about, so that rows are passed by without being fetched,
        # and where few rows are in the range, it is read and sorted. PostgreSQL has more, for `search`, `city` and `office`, in migrations 0003 and 0004.
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


class PropertyImage(TaggedModel):
    """A picture of a property; the detail shows them by `position`."""

    tag = "images"

    property = models.ForeignKey(Property, on_delete=models.CASCADE, related_name="images")
    url = models.URLField()
    caption = models.CharField(max_length=200, null=True, blank=True)
    position = models.PositiveSmallIntegerField(default=0)

    class Meta(TaggedModel.Meta):
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return self.caption or self.url
