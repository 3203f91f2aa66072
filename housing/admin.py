"""The admin: search, filters, prices editable in the list, and images beside their property."""

from typing import Any

from django.contrib import admin
from django.db.models import URLField

from housing.models import Agent, Location, Office, Property, PropertyImage

HTTPS: dict[Any, Any] = {URLField: {"assume_scheme": "https"}}
"""The scheme of a URL typed without one. It is the default since Django 6."""


class PropertyImageInline(admin.TabularInline):
    """The images of a property."""

    model = PropertyImage
    extra = 1
    formfield_overrides = HTTPS


@admin.register(Property)
class PropertyAdmin(admin.ModelAdmin):
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
class OfficeAdmin(admin.ModelAdmin):
    """Offices by name."""

    list_display = ["name", "city"]
    list_filter = ["city"]
    search_fields = ["name", "city"]
    ordering = ["name", "id"]


@admin.register(Agent)
class AgentAdmin(admin.ModelAdmin):
    """Agents by name."""

    list_display = ["name", "email", "office"]
    list_filter = ["office"]
    list_select_related = ["office"]
    search_fields = ["name", "email", "office__name"]
    autocomplete_fields = ["office"]
    ordering = ["name", "id"]


@admin.register(Location)
class LocationAdmin(admin.ModelAdmin):
    """Locations by city."""

    list_display = ["city", "state", "zip_code", "latitude", "longitude"]
    list_filter = ["state"]
    search_fields = ["city", "zip_code"]
    ordering = ["city", "zip_code", "id"]


@admin.register(PropertyImage)
class PropertyImageAdmin(admin.ModelAdmin):
    """Images by their property."""

    formfield_overrides = HTTPS
    list_display = ["property", "position", "caption", "url"]
    list_select_related = ["property"]
    search_fields = ["caption", "property__title"]
    autocomplete_fields = ["property"]
    ordering = ["property_id", "position"]
