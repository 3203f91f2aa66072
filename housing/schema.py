"""The OpenAPI description of the API views, made from the filters that validate their parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.generics import ListAPIView

from housing.filters import NEWEST_FIRST, PAGE_SIZE, PropertyFilter
from housing.freshness import CachedView

DEFAULTS = {"ordering": NEWEST_FIRST, "page_size": PAGE_SIZE}
DETAIL = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
ERRORS_OF_PARAMETERS = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}
CACHE_STATUS = (
    "Where the response came from (RFC 9211), such as `housing; hit`, `housing; fwd=miss; stored` or `housing; fwd=stale; stored`. "
    "`housing; hit; detail=stale-if-error` comes with `Age` while the database cannot be reached."
)
SERVER_TIMING = "The number of SQL statements, and the milliseconds of SQL and of the whole request."


class Schema(AutoSchema):
    """Describes a list or a detail: its query parameters, its responses and their headers."""

    @property
    def _is_list(self) -> bool:
        return isinstance(self.view, ListAPIView)

    @property
    def _is_cached(self) -> bool:
        return isinstance(self.view, CachedView)

    def get_override_parameters(self) -> list[Any]:
        """Return the query parameters and the response headers."""
        headers = [header("Server-Timing", SERVER_TIMING, [200])]
        if self._is_cached:
            headers += [
                header("Cache-Status", CACHE_STATUS, [200, 304]),
                header("ETag", "Send it as `If-None-Match` to get 304 while the response has not changed.", [200, 304]),
            ]
        return headers + ([parameter(name, filter_.field) for name, filter_ in PropertyFilter.base_filters.items()] if self._is_list else [])

    def get_response_serializers(self) -> Any:
        """Return a response for each status code of a GET."""
        responses: dict[int, Any] = {200: super().get_response_serializers()}
        if self._is_cached:
            responses[304] = OpenApiResponse(description="The response has not changed since the request that returned this ETag.")
        if self._is_list:
            responses[400] = OpenApiResponse(ERRORS_OF_PARAMETERS, description="A parameter is invalid or repeated. The body has the errors of each parameter.")
        else:
            responses[404] = OpenApiResponse(DETAIL, description="There is no property with this id.")
        responses[405] = OpenApiResponse(DETAIL, description="Any method other than GET, HEAD and OPTIONS.")
        responses[406] = OpenApiResponse(DETAIL, description="The `Accept` header allows neither JSON nor HTML.")
        responses[503] = OpenApiResponse(DETAIL, description="The database is unavailable or busy. `Retry-After` has the seconds to wait.")
        return responses


def header(name: str, description: str, statuses: list[int]) -> OpenApiParameter:
    """Describe a response header."""
    return OpenApiParameter(name, str, OpenApiParameter.HEADER, description=description, response=statuses)


def parameter(name: str, field: forms.Field) -> OpenApiParameter:
    """Describe a query parameter, with the type and the bounds that its form field validates."""
    return OpenApiParameter(name, values_of(field), description=field.help_text, default=DEFAULTS.get(name))


def values_of(field: forms.Field) -> dict[str, Any]:
    """Return the JSON schema of the values that a form field accepts."""
    match field:
        case forms.DecimalField(max_digits=int(digits), decimal_places=int(places)):
            most = float(Decimal(10) ** (digits - places) - Decimal(10) ** -places)
            return {"type": "number", "minimum": -most, "maximum": most}
        case forms.IntegerField():
            return {"type": "integer", "minimum": field.min_value, "maximum": field.max_value}
        case forms.ChoiceField():
            choices: Any = field.choices
            return {"type": "string", "enum": [value for value, _ in choices if value]}
        case forms.CharField(max_length=int(length)):
            return {"type": "string", "maxLength": length}
    return {"type": "string"}
