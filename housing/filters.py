"""What may be asked of a list, and the keyset cursor that walks it."""

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
from django.db.models import BooleanField, F, Func, Q, QuerySet, Value
from django.db.models.lookups import Exact, GreaterThan, LessThan
from django.db.models.sql.compiler import SQLCompiler
from django.http import HttpRequest, QueryDict
from django_filters.utils import translate_validation
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from housing.models import Property

NEWEST_FIRST = "-created_at"
PAGE_SIZE, MAX_PAGE_SIZE = 20, 100
MAX_ID = 2**63 - 1
REMEMBERED = 4096
"""So many texts of parameters are validated once for all who ask alike."""


# What may be asked


class Integer(django_filters.NumberFilter):
    """A filter by a whole number."""

    field_class = forms.IntegerField


class Copied(Func):
    """A column of a row that a property belongs to. On PostgreSQL it is in the property's own row, too, by the name of `copy` (migration 0004)."""

    template = "%(expressions)s"

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, list[Any]]:
        """The column that no model has."""
        quote: Callable[[str], str] = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias  # its name until Django 6.0
        return f"{quote(compiler.query.get_initial_alias())}.{self.extra['copy']}", []


COPIED = {"city": Copied(F("location__city"), copy="city"), "office": Copied(F("agent__office_id"), copy="office_id")}
"""Filter → whichever column of it has the index."""


class OnceForm(forms.Form):
    """Refuses a parameter that is given twice, and a cursor that is not ours or belongs to another ordering."""

    data: QueryDict

    def clean(self) -> dict[str, Any]:
        """The validated parameters, the cursor decoded."""
        for name in self.fields:
            if len(self.data.getlist(name)) > 1:
                self.add_error(name, "Give this parameter once.")
        values = self.cleaned_data
        if values.get("cursor"):
            try:
                values["cursor"] = Cursor.decode(values["cursor"], values.get("ordering") or NEWEST_FIRST)
            except ValueError as wrong:
                self.add_error("cursor", str(wrong))
        return values


class PropertyFilter(django_filters.FilterSet):
    """The parameters of a list. Empty means absent; what is not declared here is ignored."""

    city = django_filters.CharFilter(method="by_a_copy", max_length=100, help_text="The location's city, exactly.")
    status = django_filters.ChoiceFilter(choices=Property.Status.choices)
    property_type = django_filters.ChoiceFilter(choices=Property.Type.choices)
    agent = Integer("agent_id", min_value=1, max_value=MAX_ID, help_text="The agent's id.")
    office = Integer(method="by_a_copy", min_value=1, max_value=MAX_ID, help_text="The id of the agent's office.")
    min_price = django_filters.NumberFilter("price", "gte", max_digits=12, decimal_places=2)
    max_price = django_filters.NumberFilter("price", "lte", max_digits=12, decimal_places=2)
    min_bedrooms = Integer("bedrooms", "gte", min_value=0, max_value=32767)
    search = django_filters.CharFilter(method="in_title_or_description", max_length=200, help_text="Part of the title or the description.")
    ordering = django_filters.ChoiceFilter(method="left_to_the_cursor", choices=[(name, name) for name in ("created_at", "-created_at", "price", "-price")])
    page_size = Integer(method="left_to_the_cursor", min_value=1, max_value=MAX_PAGE_SIZE, help_text=f"Rows a page; {PAGE_SIZE} unless given.")
    cursor = django_filters.CharFilter(method="left_to_the_cursor", help_text="From `next` or `previous` of another page.")

    class Meta:
        model = Property
        fields: Sequence[str] = []
        form = OnceForm

    def by_a_copy(self, found: QuerySet[Property], name: str, value: Any) -> QuerySet[Property]:
        """By what PostgreSQL has in the property's own row."""
        return found.filter(Exact(COPIED[name], value))

    def in_title_or_description(self, found: QuerySet[Property], name: str, text: str) -> QuerySet[Property]:
        """Case is ignored as the database does it: SQLite for ASCII letters only."""
        return found.filter(Q(title__icontains=text) | Q(description__icontains=text))

    def left_to_the_cursor(self, found: QuerySet[Property], name: str, value: Any) -> QuerySet[Property]:
        """Not a filter: `Query` reads it."""
        return found


# The cursor


class Row(Func):
    """`(a, b)`, to be compared as one, so that an index over both seeks instead of scanning equal values of `a`."""

    template = "(%(expressions)s)"
    output_field = BooleanField()


READ: dict[str, Callable[[str], Any]] = {"created_at": datetime.datetime.fromisoformat, "price": Decimal}


Pick = Callable[[Any, str], Any]
"""A column of a row."""


@dataclass(frozen=True)
class Cursor:
    """A position between rows: beyond (value, id) in an ordering, read forward or backward.

    Without a position, a backward cursor reads the last page. Signed, so that each position has one text and none is forged.
    """

    ordering: str
    backward: bool
    position: tuple[Any, int] | None = None

    signer = signing.Signer(salt="housing.cursor", sep=".")

    def encode(self) -> str:
        """The text for a link."""
        value, key = self.position or (None, None)
        return self.signer.sign_object([self.ordering, self.backward, str(value), key])

    @classmethod
    def decode(cls, text: str, ordering: str) -> Cursor:
        """The cursor of a link. Raises ValueError if it is not ours, or walks another ordering than the one asked for."""
        try:
            walked, backward, value, key = cls.signer.unsign_object(text)
        except signing.BadSignature:
            raise ValueError("This is not a cursor from `next` or `previous`.") from None
        if walked != ordering:
            raise ValueError(f"This cursor walks the list by {walked}, not by {ordering}.")
        return cls(walked, backward, None if key is None else (READ[walked.removeprefix("-")](value), key))

    def after(self, row: Any, backward: bool, pick: Pick) -> Cursor:
        """The position of a row."""
        return replace(self, backward=backward, position=(pick(row, self.ordering.removeprefix("-")), pick(row, "id")))

    def walk(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """The rows from here on, in the order in which they are read."""
        column = self.ordering.removeprefix("-")
        descending = self.ordering.startswith("-") != self.backward
        if self.position is not None:
            value, key = self.position
            here = Row(Value(value), Value(key))
            found = found.filter((LessThan if descending else GreaterThan)(Row(F(column), F("id")), here))
        sign = "-" if descending else ""
        return found.order_by(f"{sign}{column}", f"{sign}id")


@dataclass(frozen=True)
class Page:
    """The rows of one page, and the relative links to its neighbours."""

    rows: list[Any]
    next: str | None
    previous: str | None

    def body(self, results: Any) -> dict[str, Any]:
        """What a list answers, with its rows serialized."""
        return {"next": self.next, "previous": self.previous, "results": results}


class Query:
    """What a request asks of a list, validated: one text for all the ways of asking the same.

    Takes the request's parameters; raises DRF's ValidationError, parameter → what is wrong.
    """

    filters: ClassVar = PropertyFilter(queryset=Property.objects.none())
    form_class: ClassVar = filters.get_form_class()

    def __init__(self, parameters: QueryDict) -> None:
        form = self.form_class(parameters)
        if not form.is_valid():
            raise translate_validation(form.errors)
        asked = form.cleaned_data
        self.page_size: int = asked["page_size"] or PAGE_SIZE
        self.ordering: str = asked["ordering"] or NEWEST_FIRST
        self.cursor: Cursor | None = asked["cursor"] or None
        self._from = self.cursor or Cursor(self.ordering, backward=False)
        defaults = {"page_size": PAGE_SIZE, "ordering": NEWEST_FIRST}
        self._asked = {name: value for name, value in asked.items() if value not in (None, "", defaults.get(name))}

    @classmethod
    def of(cls, request: HttpRequest) -> Query:
        """What this request asks. Raises as `Query()`."""
        return _remembered(request.META.get("QUERY_STRING", ""), request.encoding)

    @cached_property
    def canonical(self) -> str:
        """The parameters as a link has them: without what is empty, default or unknown, numbers written one way."""
        return self._link(self.cursor)

    def filter(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """Those that are asked for."""
        for name, value in self._asked.items():
            found = self.filters.filters[name].filter(found, value)
        return found

    def walk(self, found: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of the page, and one more, which tells whether there is a next."""
        return self._from.walk(found)[: self.page_size + 1]

    def page(self, rows: list[Any], pick: Pick = getattr) -> Page:
        """The page of what `walk` gave. `pick` takes a column of a row."""
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
        pairs = [(name, _text(value)) for name, value in self._asked.items() if name != "cursor"]
        return urlencode(pairs + ([("cursor", cursor.encode())] if cursor else []))


def _text(value: Any) -> str:
    return format((value + 0).normalize(), "f") if isinstance(value, Decimal) else str(value)


@lru_cache(maxsize=REMEMBERED)
def _remembered(text: str, encoding: str | None) -> Query:
    """What is asked depends on the text alone, and a form takes ten times as long over it as Redis over the answer."""
    return Query(QueryDict(text.encode("latin-1"), encoding=encoding))


class KeysetPagination(BasePagination):
    """DRF's interface to `Query.page`."""

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """The rows of the page that is asked for, of what the filters left."""
        query = Query(request.query_params)
        self.page = query.page(list(query.walk(queryset)))
        return self.page.rows

    def get_paginated_response(self, data: Any) -> Response:
        """The page with its links."""
        return Response(self.page.body(data))

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """For `/api/schema/`."""
        link = {"type": "string", "nullable": True, "example": "?cursor=…"}
        return {"type": "object", "required": ["next", "previous", "results"], "properties": {"next": link, "previous": link, "results": schema}}
