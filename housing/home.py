"""The pages for people: the demo page `/`, which reads each list and shows what a change invalidates, and the browsable API."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import never_cache
from django.views.generic import TemplateView
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rest_framework.renderers import BrowsableAPIRenderer

from housing import queries
from housing.models import Office, Property
from housing.outages import bounds_its_reads
from housing.policies import STRICT

JSON = "application/json"
SPEC = settings.ROOT / "SPEC.md"
"""The list of promises. The container image has neither the specs nor this file."""

SPEC_TOOLS = settings.ROOT / "SPEC-TOOLS.md"
"""The promises of the test tools."""


class ChangeForm(forms.ModelForm):
    """A form for one new value of one row."""

    label: ClassVar[str]
    written: ClassVar[list[str]]
    """The columns that it saves."""

    @classmethod
    def allowed_to(cls, user: Any) -> bool:
        """Whether this user may save it: staff with the admin's permission, or anyone in debug on the embedded stack."""
        own_machine = settings.DEBUG and settings.EMBEDDED
        return bool(own_machine or (user.is_staff and user.has_perm(f"housing.change_{cls._meta.model._meta.model_name}")))

    @property
    def address(self) -> str:
        """The URL that it is sent to."""
        return reverse(f"change-{self._meta.model._meta.model_name}", args=[self.instance.pk])

    def save(self, commit: bool = True) -> Any:
        """Save only the new value, so that no other column is overwritten with an old one."""
        self.instance.save(update_fields=self.written)
        return self.instance


class PriceForm(ChangeForm):
    """The price of a property."""

    label = "Price"
    written = ["price", "updated_at"]

    class Meta:
        model = Property
        fields = ["price"]


class OfficeForm(ChangeForm):
    """The name of an office."""

    label = "Office name"
    written = ["name"]

    class Meta:
        model = Office
        fields = ["name"]


class HomeView(TemplateView):
    """The demo page: three lists, a form that changes the newest listing, and the cached responses around it."""

    template_name = "housing/home.html"
    refused: ChangeForm | None = None
    """The form that was not saved, with its errors."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the newest listing, its forms and the cached responses around it."""
        home = queries.joined().order_by("-created_at", "-id").first()
        changes = home and [self.form(form_class, row) for form_class, row in ((PriceForm, home), (OfficeForm, home.agent.office))]
        allowed = [form for form in changes or () if form.allowed_to(self.request.user)]
        entries = home and entries_around(home)
        return super().get_context_data(debug=settings.DEBUG, spec=SPEC.is_file(), home=home, changes=allowed, entries=entries, **kwargs)

    def form(self, form_class: type[ChangeForm], row: Property | Office) -> ChangeForm:
        """Return a form for this row, or the one that was just refused."""
        return self.refused if isinstance(self.refused, form_class) else form_class(instance=row)

    def render_to_response(self, context: dict[str, Any], **response_kwargs: Any) -> HttpResponse:
        """Render the page, which no browser may keep, so that Back reads it again."""
        response = super().render_to_response(context, **response_kwargs)
        response.headers["Content-Security-Policy"] = STRICT
        add_never_cache_headers(response)
        return response


def entries_around(home: Property) -> list[tuple[str, str]]:
    """Return labels and URLs of cached responses to watch while this property or its office changes."""
    newest, office = Property.objects.order_by("-created_at", "-id"), home.agent.office_id
    neighbour = newest.filter(agent__office=office).exclude(pk=home.pk).first()
    stranger = newest.exclude(agent__office=office).select_related("agent").first()
    page = reverse("cached-list")
    return [
        ("The first page", page),
        ("Listings of its office", f"{page}?office={office}"),
        *([("Listings of another office", f"{page}?office={stranger.agent.office_id}")] if stranger else []),
        ("This listing", reverse("cached-detail", args=[home.pk])),
        *([("Another listing of its office", reverse("cached-detail", args=[neighbour.pk]))] if neighbour else []),
        *([("A listing of another office", reverse("cached-detail", args=[stranger.pk]))] if stranger else []),
    ]


class ChangeView(HomeView):
    """Saves a new value. The page's script gets 204; a browser without scripts is redirected to the page. Errors are shown on the page."""

    http_method_names = ["post"]
    form_class: type[ChangeForm] = PriceForm

    def post(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Change the row `pk` of the form's model."""
        if not self.form_class.allowed_to(request.user):
            return self.render_to_response(self.get_context_data(), status=403)
        form = self.form_class(request.POST, instance=get_object_or_404(self.form_class._meta.model, pk=pk))
        status = saved(form)
        by_script = request.get_preferred_type(["text/html", JSON]) == JSON
        if status == 204 and not by_script:
            messages.success(request, "Saved. Every read from now on shows the new value.")
            return redirect("home")
        if by_script:
            return HttpResponse(status=status) if status == 204 else JsonResponse({name: list(wrong) for name, wrong in form.errors.items()}, status=status)
        self.refused = form
        return self.render_to_response(self.get_context_data(), status=status)


def saved(form: ChangeForm) -> int:
    """Save a valid form. Return 204, or 400 or 503 with errors in the form."""
    if not form.is_valid():
        return 400
    try:
        form.save()
    except DatabaseError as refused:
        form.add_error(None, f"The database refused the change: {refused}")
        return 503
    return 204


@bounds_its_reads
def spec(request: HttpRequest, tools: bool = False) -> HttpResponse:
    """SPEC.md, or SPEC-TOOLS.md, as a page. Raises Http404 where the service is without its specs, as in a container."""
    file: Path = SPEC_TOOLS if tools else SPEC
    if not file.is_file():
        raise Http404(f"{file.name} is not part of this installation. It is in the repository.")
    return render(request, "housing/spec.html", {"spec": as_html(file.read_text(encoding="utf-8"))})


@lru_cache(maxsize=2)
def as_html(markdown: str) -> SafeString:
    """Markdown as HTML, with an anchor for each heading. Raw HTML in it is shown as text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    _add_anchors(tokens)
    for token in tokens:
        if token.attrs.pop("style", None):  # a centred column
            token.attrs["class"] = "mark"
        _lead_somewhere(token.children or ())
    page: str = parser.renderer.render(tokens, parser.options, {})
    return mark_safe(page)  # noqa: S308  # the parser has escaped it


def _add_anchors(tokens: list[Token]) -> None:
    """Give each heading the anchor that GitHub gives it: a second one of the same name ends in `-1`."""
    seen: dict[str, int] = {}
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            times = seen[anchor] = seen.get(anchor, -1) + 1
            heading.attrs["id"] = f"{anchor}-{times}" if times else anchor


def _lead_somewhere(inline: Iterable[Token]) -> None:
    """Let links between the documents lead to their pages. The service does not serve its specs, so a link to one becomes a title with its place."""
    pages = {"SPEC.md": "spec", "SPEC-TOOLS.md": "spec-tools"}
    tag = "a"
    for token in inline:
        if token.type == "link_open":
            href = str(token.attrs["href"])
            if href in pages:
                token.attrs["href"] = reverse(pages[href])
            elif not href.startswith("#"):
                token.attrs = {"title": href.replace("#L", ":")}
                tag = "span"
            token.tag = tag
        elif token.type == "link_close":
            token.tag, tag = tag, "a"


@bounds_its_reads
@never_cache
def favicon(request: HttpRequest) -> HttpResponseRedirect:
    """Redirect browsers that look for the icon of a page without a link to it, such as the admin."""
    return redirect(static("housing/favicon.svg"))


class BrowsablePage(BrowsableAPIRenderer):
    """DRF's browsable API, with links between pages, rows and variants. No browser may keep a page, because Back would show it as it was before a change."""

    template = "housing/api.html"
    filter_template = "housing/filters.html"

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Any) -> dict[str, Any]:
        """Add the links: to the same data in each variant, to the neighbouring pages, and to the detail of each row."""
        context: dict[str, Any] = super().get_context(data, accepted_media_type, renderer_context)
        request = renderer_context["request"]
        page = data if isinstance(data, dict) and "results" in data else {"next": None, "previous": None, "results": []}
        context |= {"variants": variants_of(request), "next": page["next"], "previous": page["previous"]}
        return context | {"rows": [(row["title"], f"{request.path}{row['id']}/") for row in page["results"]]}

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> Any:
        """Render the page, which no browser may keep."""
        renderer_context["response"].headers["Cache-Control"] = "no-cache, no-store"
        return super().render(data, accepted_media_type, renderer_context)


def variants_of(request: Any) -> list[tuple[str, str, bool]]:
    """Return the label and the URL of this request in each variant, and whether it is the current one."""
    match = request.resolver_match
    current, _, kind = match.url_name.partition("-")
    query = f"?{request.META['QUERY_STRING']}" if request.META.get("QUERY_STRING") else ""
    return [(name.title(), f"{reverse(f'{name}-{kind}', kwargs=match.kwargs)}{query}", name == current) for name in ("naive", "optimized", "cached")]


def shows_toolbar(request: HttpRequest) -> bool:
    """Whether the Debug Toolbar is on this page: in debug, for a client on this machine, on every HTML page but `/`.

    The policy of `/` refuses the toolbar's inline styles. On a JSON response the toolbar would only add to its time.
    """
    here = settings.DEBUG and request.META["REMOTE_ADDR"] in settings.INTERNAL_IPS
    page = "text/html" in request.headers.get("Accept", "") and request.path != "/" and not request.path.startswith("/change/")
    return here and (page or request.path.startswith("/__debug__/"))
