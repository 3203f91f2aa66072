"""The OpenAPI description of the API views, made from the filters that validate their parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, inline_serializer
from rest_framework.generics import ListAPIView
from rest_framework.serializers import CharField, ListField
from rest_framework.settings import api_settings

from housing.filters import MAX_ID, NEWEST_FIRST, PAGE_SIZE, Query
from housing.freshness import CachedView

DEFAULTS = {"ordering": NEWEST_FIRST, "page_size": PAGE_SIZE}

ERROR = inline_serializer("Error", {"detail": CharField()})
PARAMETER_ERRORS = inline_serializer(
    "ParameterErrors",
    {name: ListField(child=CharField(), required=False) for name in (*Query.form_class.base_fields, api_settings.NON_FIELD_ERRORS_KEY)},
)

NO_NUL = "^[^\\u0000]*$"
"""PostgreSQL cannot store the character NUL, so a form field refuses it."""

ALL = [200, 304, 400, 404, 405, 406, 412, 503]
SERVER_TIMING = "The number of SQL statements, and the milliseconds of SQL and of the whole request."
CACHE_STATUS = (
    "Where the response came from (RFC 9211), such as `housing; hit`, `housing; fwd=miss; stored` or `housing; fwd=stale; stored`. "
    "`housing; hit; detail=stale-if-error` comes with `Age` while the database cannot be reached."
)
CACHE_CONTROL = "`no-cache`: a client may keep the response, and must validate it with its `ETag` before each use."
ETAG = "Identifies the response. Send it as `If-None-Match` to get 304 while the response has not changed."


class Schema(AutoSchema):
    """Describes a list or a detail: its parameters, its responses and their headers."""

    @property
    def _is_list(self) -> bool:
        return isinstance(self.view, ListAPIView)

    @property
    def _is_cached(self) -> bool:
        return isinstance(self.view, CachedView)

    def get_summary(self) -> str:
        """Return one line for the overview of the docs page."""
        return "List properties" if self._is_list else "Get one property with its images"

    def get_override_parameters(self) -> list[Any]:
        """Return the parameters and the response headers."""
        return [*self._headers(), *self._parameters()]

    def _headers(self) -> list[OpenApiParameter]:
        headers = [
            header("Server-Timing", SERVER_TIMING, ALL),
            header("Vary", "The request headers on which the response depends.", [200, 304, 412] if self._is_cached else [200, 304]),
            header("Allow", "The methods that are allowed.", [405]),
            header("Retry-After", "The number of seconds after which the client may try again.", [503], int),
        ]
        if self._is_cached:
            headers += [
                header(name, text, [200, 304, 412]) for name, text in (("Cache-Status", CACHE_STATUS), ("Cache-Control", CACHE_CONTROL), ("ETag", ETAG))
            ]
        return headers

    def _parameters(self) -> list[OpenApiParameter]:
        if self._is_list:
            parameters = [parameter(name, field) for name, field in Query.form_class.base_fields.items()]
        else:
            id_ = {"type": "integer", "minimum": 1, "maximum": MAX_ID}
            parameters = [OpenApiParameter("id", id_, OpenApiParameter.PATH, description="Id of the property.")]
        if self._is_cached:
            text = "The `ETag` of a previous response. If it is still the same, the response is 304 without a body."
            parameters.append(OpenApiParameter("If-None-Match", str, OpenApiParameter.HEADER, description=text))
            text = "The `ETag` of a previous response. If it is another one now, the response is 412."
            parameters.append(OpenApiParameter("If-Match", str, OpenApiParameter.HEADER, description=text))
        return parameters

    def get_response_serializers(self) -> Any:
        """Return a response for each status code of a GET."""
        shown = "A page of properties, and the links to its neighbours." if self._is_list else "The property."
        responses: dict[int, Any] = {200: OpenApiResponse(super().get_response_serializers(), description=shown)}
        if self._is_cached:
            responses[304] = OpenApiResponse(description="The response still has the ETag in `If-None-Match`.")
        refused = "A parameter is invalid or repeated. The body has the errors of each parameter." if self._is_list else "There are too many parameters."
        responses[400] = OpenApiResponse(PARAMETER_ERRORS, description=refused)
        if not self._is_list:
            responses[404] = OpenApiResponse(ERROR, description="There is no property with this id.")
        responses[405] = OpenApiResponse(ERROR, description="Any method other than GET, HEAD and OPTIONS.")
        responses[406] = OpenApiResponse(ERROR, description="The `Accept` header allows neither JSON nor HTML.")
        if self._is_cached:
            responses[412] = OpenApiResponse(ERROR, description="The response has another ETag than those in `If-Match`.")
        responses[503] = OpenApiResponse(ERROR, description="The database is unavailable or busy. `Retry-After` has the seconds to wait.")
        return responses


def header(name: str, description: str, statuses: list[int], type_: type = str) -> OpenApiParameter:
    """Describe a response header."""
    return OpenApiParameter(name, type_, OpenApiParameter.HEADER, description=description, response=statuses)


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
            named = {value: label for value, label in choices if value}
            return {"type": "string", "enum": list(named), "x-enum-varnames": [label.upper().replace(" ", "_") for label in named.values()]}
        case forms.CharField():
            length = {} if field.max_length is None else {"maxLength": field.max_length}
            return {"type": "string", **length, "pattern": NO_NUL}
    raise TypeError(f"The schema cannot describe a {type(field).__name__}. Add its type and bounds to `values_of`.")
