"""The query parameters of a list, and its keyset cursor."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, ClassVar
from urllib.parse import urlencode

import django_filters
from django import forms
from django.core import signing
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q, QuerySet, Value
from django.db.models.lookups import Exact, GreaterThan, LessThan
from django.db.models.sql.compiler import SQLCompiler
from django.http import HttpRequest, QueryDict
from django_filters.utils import translate_validation
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from housing.freshness import Copy, RowValue
from housing.models import Property

NEWEST_FIRST = "-created_at"
PAGE_SIZE, MAX_PAGE_SIZE = 20, 100
MAX_ID = 2**63 - 1
ORDERINGS = [
    ("-created_at", "Newest first"),
    ("created_at", "Oldest first"),
    ("price", "Lowest price first"),
    ("-price", "Highest price first"),
]
CENT = Decimal("0.01")
LINKED = {"status", "property_type", "ordering"}
"""The parameters with few values, so that their pages are few, too. There are as many cursors as properties."""

KEPT = 4096
"""How many validated query strings are kept in memory."""


# Query parameters


class Integer(django_filters.NumberFilter):
    """A filter that takes a whole number."""

    field_class = forms.IntegerField


class EmptyInput(forms.TextInput):
    """An input of the browsable API's form that does not repeat the value of the request: another filter or order starts at its first page."""

    def format_value(self, value: Any) -> None:
        """Return no value."""


class Copied(Copy):
    """A column of a related row. PostgreSQL keeps a copy of it in the property's own row, in the column `copy` (migration 0004)."""

    template = "%(expressions)s"

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, list[Any]]:
        """The SQL of the copied column, which is in no model."""
        quote: Callable[[str], str] = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias  # its name before Django 6.0
        return f"{quote(compiler.query.get_initial_alias())}.{self.extra['copy']}", []


COPIED = {"city": Copied(F("location__city"), copy="city"), "office": Copied(F("agent__office_id"), copy="office_id")}
"""Filter → the column that has an index on this database."""


class OnceForm(forms.Form):
    """Refuses repeated parameters, and a cursor that is forged or belongs to another ordering."""

    data: QueryDict

    def clean(self) -> dict[str, Any]:
        """Validate the parameters, write numbers as their column has them, because PostgreSQL 15 cannot read 0e1073741823, and decode the cursor."""
        for name in self.fields:
            if len(self.data.getlist(name)) > 1:
                self.add_error(name, "This parameter may be given only once.")
        values = self.cleaned_data
        for name, value in values.items():
            if isinstance(value, Decimal):
                values[name] = value.quantize(CENT)
        if values.get("cursor"):
            try:
                values["cursor"] = Cursor.decode(values["cursor"], values.get("ordering") or NEWEST_FIRST)
            except ValueError as wrong:
                self.add_error("cursor", str(wrong))
        return values


class PropertyFilter(django_filters.FilterSet):
    """The query parameters of a list. An empty value counts as absent, and unknown parameters are ignored."""

    city = django_filters.CharFilter(label="City", help_text="Exact name of the city.", method="by_copied_column", max_length=100)
    status = django_filters.ChoiceFilter(label="Status", help_text="State of the sale.", choices=Property.Status.choices)
    property_type = django_filters.ChoiceFilter(label="Type", help_text="Kind of property.", choices=Property.Type.choices)
    agent = Integer("agent_id", label="Agent", help_text="Id of the agent.", min_value=1, max_value=MAX_ID)
    office = Integer(label="Office", help_text="Id of the agent's office.", method="by_copied_column", min_value=1, max_value=MAX_ID)
    min_price = django_filters.NumberFilter(
        "price", "gte", label="Minimum price", help_text="Lowest price (2 decimal places).", max_digits=12, decimal_places=2
    )
    max_price = django_filters.NumberFilter(
        "price", "lte", label="Maximum price", help_text="Highest price (2 decimal places).", max_digits=12, decimal_places=2
    )
    min_bedrooms = Integer("bedrooms", "gte", label="Minimum bedrooms", help_text="Lowest number of bedrooms.", min_value=0, max_value=32767)
    search = django_filters.CharFilter(label="Search", help_text="Part of the title or description.", method="in_title_or_description", max_length=200)
    ordering = django_filters.ChoiceFilter(label="Order", help_text="Order of the rows; `-` means descending.", method="read_by_the_query", choices=ORDERINGS)
    page_size = Integer(label="Page size", help_text="Rows per page.", method="read_by_the_query", min_value=1, max_value=MAX_PAGE_SIZE)
    cursor = django_filters.CharFilter(
        label="Cursor", help_text="Opaque position, from the link to a next or previous page.", method="read_by_the_query", widget=EmptyInput
    )

    class Meta:
        model = Property
        fields: Sequence[str] = []
        form = OnceForm

    def by_copied_column(self, found: QuerySet[Property], name: str, value: Any) -> QuerySet[Property]:
        """Filter by a column that PostgreSQL copies into the property's own row."""
        return found.filter(Exact(COPIED[name], value))

    def in_title_or_description(self, found: QuerySet[Property], name: str, text: str) -> QuerySet[Property]:
        """Search without regard to case, which on SQLite means ASCII letters only."""
        return found.filter(Q(title__icontains=text) | Q(description__icontains=text))

    def read_by_the_query(self, found: QuerySet[Property], name: str, value: Any) -> QuerySet[Property]:
        """Leave the rows as they are: `Query` reads this parameter."""
        return found


# The cursor


READ: dict[str, Callable[[str], Any]] = {"created_at": datetime.datetime.fromisoformat, "price": Decimal}


Pick = Callable[[Any, str], Any]
"""Returns one column of a row, by its name."""


@dataclass(frozen=True)
class Cursor:
    """A position between rows: after (value, id) in an ordering, read forward or backward.

    Without a position, a backward cursor reads the last page. A cursor is signed, so each position has exactly one text, and forged cursors are refused.
    """

    ordering: str
    backward: bool
    position: tuple[Any, int] | None = None

    signer = signing.Signer(salt="housing.cursor", sep=".")

    def encode(self) -> str:
        """Return the signed text for a link."""
        value, key = self.position or (None, None)
        return self.signer.sign_object([self.ordering, self.backward, str(value), key])

    @classmethod
    def decode(cls, text: str, ordering: str) -> Cursor:
        """Return the cursor of a link. Raises ValueError if its signature is wrong or if it belongs to another ordering."""
        try:
            walked, backward, value, key = cls.signer.unsign_object(text)
        except signing.BadSignature:
            raise ValueError("This is not a cursor from `next` or `previous`.") from None
        if walked != ordering:
            raise ValueError(f"This cursor is for ordering={walked}, not for ordering={ordering}.")
        return cls(walked, backward, None if key is None else (READ[walked.removeprefix("-")](value), key))

    def after(self, row: Any, backward: bool, pick: Pick) -> Cursor:
        """Return the position of a row."""
        return replace(self, backward=backward, position=(pick(row, self.ordering.removeprefix("-")), pick(row, "id")))

    def walk(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows from this position on, in the order in which they are read."""
        column = self.ordering.removeprefix("-")
        descending = self.ordering.startswith("-") != self.backward
        if self.position is not None:
            value, key = self.position
            here = RowValue(Value(value), Value(key))
            found = found.filter((LessThan if descending else GreaterThan)(RowValue(F(column), F("id")), here))
        sign = "-" if descending else ""
        return found.order_by(f"{sign}{column}", f"{sign}id")


@dataclass(frozen=True)
class Page:
    """The rows of one page, and the relative links to its neighbours."""

    rows: list[Any]
    next: str | None
    previous: str | None

    def body(self, results: Any) -> dict[str, Any]:
        """Return the body of the response, with these serialized rows."""
        return {"next": self.next, "previous": self.previous, "results": results}


class Query:
    """The validated query parameters of a list, with one canonical text for all equivalent query strings.

    Raises DRF's ValidationError, which lists the errors of each parameter.
    """

    filters: ClassVar = PropertyFilter(queryset=Property.objects.none())
    form_class: ClassVar = filters.get_form_class()

    def __init__(self, parameters: QueryDict) -> None:
        form = self.form_class(parameters)
        if not form.is_valid():
            raise translate_validation(form.errors)
        given = form.cleaned_data
        self.page_size: int = given["page_size"] or PAGE_SIZE
        self.ordering: str = given["ordering"] or NEWEST_FIRST
        self.cursor: Cursor | None = given["cursor"] or None
        self._from = self.cursor or Cursor(self.ordering, backward=False)
        defaults = {"page_size": PAGE_SIZE, "ordering": NEWEST_FIRST}
        self._given = {name: value for name, value in given.items() if value not in (None, "", defaults.get(name))}

    @classmethod
    def of(cls, request: HttpRequest) -> Query:
        """Return the query of a request. Raises what `Query()` raises."""
        return _validated(request.META.get("QUERY_STRING", ""), request.encoding)

    @cached_property
    def canonical(self) -> str:
        """The parameters as a link has them: without empty, default or unknown ones, and with each number in one notation."""
        return self._link(self.cursor)

    @property
    def is_linked(self) -> bool:
        """Whether it is one of the first pages, of which there are only as many as there are choices."""
        return self._given.keys() <= LINKED

    def filter(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """Apply the filters."""
        for name, value in self._given.items():
            found = self.filters.filters[name].filter(found, value)
        return found

    def walk(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows of the page and one more, which shows whether there is a next page."""
        return self._from.walk(found)[: self.page_size + 1]

    def page(self, rows: list[Any], pick: Pick = getattr) -> Page:
        """Make a page of the rows that `walk` returned. `pick` returns one column of a row."""
        cursor = self._from
        more, rows = len(rows) > self.page_size, rows[: self.page_size]
        if not cursor.backward:
            following = cursor.after(rows[-1], backward=False, pick=pick) if more else None
            preceding = cursor.after(rows[0], backward=True, pick=pick) if rows else Cursor(self.ordering, backward=True)
            return Page(rows, "?" + self._link(following) if following else None, "?" + self._link(preceding) if self.cursor else None)
        rows.reverse()
        following = cursor.after(rows[-1], backward=False, pick=pick) if rows else None
        preceding = cursor.after(rows[0], backward=True, pick=pick) if rows else cursor
        return Page(rows, "?" + self._link(following), "?" + self._link(preceding))

    def _link(self, cursor: Cursor | None) -> str:
        pairs = [(name, _text(value)) for name, value in self._given.items() if name != "cursor"]
        return urlencode(pairs + ([("cursor", cursor.encode())] if cursor else []))


def _text(value: Any) -> str:
    return format((value + 0).normalize(), "f") if isinstance(value, Decimal) else str(value)


@lru_cache(maxsize=KEPT)
def _validated(text: str, encoding: str | None) -> Query:
    """Validate each query string only once: a form takes ten times as long as Redis takes for the response."""
    return Query(QueryDict(text.encode("latin-1"), encoding=encoding))


class KeysetPagination(BasePagination):
    """DRF's pagination interface to `Query.page`."""

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """Return the rows of the requested page of a filtered queryset."""
        query = Query(request.query_params)
        self.page = query.page(list(query.walk(queryset)))
        return self.page.rows

    def get_paginated_response(self, data: Any) -> Response:
        """Return the page with its links."""
        return Response(self.page.body(data))

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Describe the page for `/api/schema/`."""
        link = {"type": "string", "nullable": True, "example": "?cursor=…"}
        following = link | {"description": "The parameters of the next page, beginning with `?`. Null on the last page."}
        preceding = link | {"description": "The parameters of the previous page, beginning with `?`. Null on the first page."}
        return {"type": "object", "required": ["next", "previous", "results"], "properties": {"next": following, "previous": preceding, "results": schema}}
