"""The admin: search, filters, prices editable in the list, and images beside their property."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import DatabaseError
from django.db.models import URLField
from django.http import HttpRequest

from housing.models import Agent, Location, Office, Property, PropertyImage

logger = logging.getLogger(__name__)

HTTPS: dict[Any, Any] = {URLField: {"assume_scheme": "https"}}
"""The scheme of a URL typed without one. It is the default since Django 6."""


class KeepsRefused(admin.ModelAdmin):
    """If the database refuses a write, the page shows the form again, with its values and the reason."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Show or save one row."""
        return self._kept(request, partial(super().changeform_view, request, *args, **kwargs))

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Show the list, or save the rows that were changed in it."""
        return self._kept(request, partial(super().changelist_view, request, *args, **kwargs))

    def _kept(self, request: HttpRequest, view: Callable[[], Any]) -> Any:
        try:
            return view()
        except DatabaseError as error:
            if request.method != "POST":
                raise
            vars(request)["_refused"] = why = f"The database refused the change: {' '.join(str(error).split())}"
        response = view()
        response.status_code = 503
        logger.error("503 for %s: %s", request.path, why, extra={"request": request, "status_code": 503})
        response._has_been_logged = True  # otherwise Django logs it again
        return response

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return the form, which is not valid if its write was refused."""
        return refused(super().get_form(request, *args, **kwargs), request)

    def get_changelist_formset(self, request: HttpRequest, **kwargs: Any) -> Any:
        """Return the forms of the list, which are not valid if their write was refused."""
        return refused(super().get_changelist_formset(request, **kwargs), request)


def refused(form: Any, request: HttpRequest) -> Any:
    """Return a form with the reason for which its write was refused, if it was."""
    why: str = vars(request).get("_refused", "")

    class Refused(form):  # type: ignore[misc]  # a class that Django has made
        def clean(self) -> None:
            super().clean()
            raise ValidationError(why)

    return Refused if why else form


class PropertyImageInline(admin.TabularInline):
    """The images of a property."""

    model = PropertyImage
    extra = 1
    formfield_overrides = HTTPS


@admin.register(Property)
class PropertyAdmin(KeepsRefused):
    """Properties, newest first."""

    list_display = ["title", "price", "status", "property_type", "location", "agent", "created_at"]
    list_editable = ["price"]
    list_filter = ["status", "property_type", "agent__office", "created_at"]
    list_select_related = ["location", "agent__office"]
    list_per_page = 50
    search_fields = ["title", "description", "location__city", "agent__name"]
    autocomplete_fields = ["location", "agent"]
    readonly_fields = ["created_at", "updated_at"]
    date_hierarchy = "created_at"
    ordering = ["-created_at", "-id"]
    inlines = [PropertyImageInline]


@admin.register(Office)
class OfficeAdmin(KeepsRefused):
    """Offices by name."""

    list_display = ["name", "city"]
    list_filter = ["city"]
    search_fields = ["name", "city"]
    ordering = ["name", "id"]


@admin.register(Agent)
class AgentAdmin(KeepsRefused):
    """Agents by name."""

    list_display = ["name", "email", "office"]
    list_filter = ["office"]
    list_select_related = ["office"]
    search_fields = ["name", "email", "office__name"]
    autocomplete_fields = ["office"]
    ordering = ["name", "id"]


@admin.register(Location)
class LocationAdmin(KeepsRefused):
    """Locations by city."""

    list_display = ["city", "state", "zip_code", "latitude", "longitude"]
    list_filter = ["state"]
    search_fields = ["city", "zip_code"]
    ordering = ["city", "zip_code", "id"]


@admin.register(PropertyImage)
class PropertyImageAdmin(KeepsRefused):
    """Images by their property."""

    formfield_overrides = HTTPS
    list_display = ["property", "position", "caption", "url"]
    list_select_related = ["property"]
    search_fields = ["caption", "property__title"]
    autocomplete_fields = ["property"]
    ordering = ["property_id", "position"]
