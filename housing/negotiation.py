"""The choice of a format by the weights in `Accept` (RFC 9110, section 12.5.1), which DRF ignores."""

from __future__ import annotations

from typing import Any

from django.http.request import MediaType
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request


class Negotiation(DefaultContentNegotiation):
    """DRF's negotiation among the formats that the client prefers. It sees types without what changes no byte: weight, case and `charset=utf-8`."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """Return the renderer and the media type. Raises NotAcceptable if the client accepts no format."""
        ranges = [MediaType(each) for each in self.sent(request)]
        weights = [weight(renderer.media_type, ranges) for renderer in renderers]
        most = max(weights)
        return super().select_renderer(request, [each for each, found in zip(renderers, weights, strict=True) if most and found == most], format_suffix)

    def get_accept_list(self, request: Request) -> list[str]:
        """Return the types in their canonical form."""
        return [canonical(MediaType(each)) for each in self.sent(request)]

    @staticmethod
    def sent(request: Request) -> list[str]:
        """Return the types as they were sent. An empty header is like none."""
        return [each for each in request.META.get("HTTP_ACCEPT", "").split(",") if each.strip()] or ["*/*"]


def weight(media_type: str, ranges: list[MediaType]) -> float:
    """Return the weight of a format: that of the range that names it most exactly, or 0."""
    kind, _, subtype = media_type.partition("/")
    found = [
        (exactness, each.quality)
        for each in ranges
        for exactness, named in enumerate([("*", "*"), (kind, "*"), (kind, subtype)])
        if (each.main_type.lower(), each.sub_type.lower()) == named
    ]
    return max(found, default=(0, 0.0))[1]


def canonical(sent: MediaType) -> str:
    """Return a type without weight and `charset=utf-8`, in lower case."""
    given = {name: str(value) for name, value in sent.params.items()}
    kept = [f"{name}={value}" for name, value in given.items() if name != "q" and (name, value.lower()) != ("charset", "utf-8")]
    return "; ".join([f"{sent.main_type}/{sent.sub_type}".lower(), *kept])
