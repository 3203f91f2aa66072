"""What a person looks at: `/`, which asks each list and shows what a change makes stale, SPEC.md, and DRF's page around an answer."""

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
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.safestring import SafeString, mark_safe
from django.views.generic import TemplateView
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rest_framework.renderers import BrowsableAPIRenderer

from housing import queries
from housing.models import Office, Property

JSON = "application/json"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser may load for `/`: what this service serves, and nothing that is written into the page."""

SPEC = settings.ROOT / "SPEC.md"
"""The promises. The file is only there where the specs are."""

SPEC_TOOLS = settings.ROOT / "SPEC-TOOLS.md"
"""The promises of the test tools."""


class ChangeForm(forms.ModelForm):
    """One new value of one row."""

    label: ClassVar[str]
    written: ClassVar[list[str]]
    """The columns that it is saved to."""

    @classmethod
    def allowed_to(cls, user: Any) -> bool:
        """Whether this user may: staff who may in the admin; in debug on the embedded stack, which is one person's own machine, anybody."""
        own_machine = settings.DEBUG and settings.EMBEDDED
        return bool(own_machine or (user.is_staff and user.has_perm(f"housing.change_{cls._meta.model._meta.model_name}")))

    @property
    def address(self) -> str:
        """Where it is sent."""
        return reverse(f"change-{self._meta.model._meta.model_name}", args=[self.instance.pk])

    def save(self, commit: bool = True) -> Any:
        """Write the new value, and no column of which this process may hold an old one."""
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

    label = "Name of its office"
    written = ["name"]

    class Meta:
        model = Office
        fields = ["name"]


class HomeView(TemplateView):
    """The page: three lists, the newest listing to change, and the entries in which to see what that makes stale."""

    template_name = "housing/home.html"
    refused: ChangeForm | None = None
    """The form that was not saved, with what is wrong."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """As Django's."""
        home = queries.joined().order_by("-created_at", "-id").first()
        changes = home and [self.form(form_class, row) for form_class, row in ((PriceForm, home), (OfficeForm, home.agent.office))]
        allowed = [form for form in changes or () if form.allowed_to(self.request.user)]
        entries = home and entries_around(home)
        return super().get_context_data(debug=settings.DEBUG, spec=SPEC.is_file(), home=home, changes=allowed, entries=entries, **kwargs)

    def form(self, form_class: type[ChangeForm], row: Property | Office) -> ChangeForm:
        """For a new value of this row, unless one was just refused."""
        return self.refused if isinstance(self.refused, form_class) else form_class(instance=row)

    def render_to_response(self, context: dict[str, Any], **response_kwargs: Any) -> HttpResponse:
        """As Django's. A browser keeps no copy, so that Back asks again too."""
        response = super().render_to_response(context, **response_kwargs)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        add_never_cache_headers(response)
        return response


def entries_around(home: Property) -> list[tuple[str, str]]:
    """What is remembered and worth watching while this property or its office changes: what each shows, and its address."""
    newest, office = Property.objects.order_by("-created_at", "-id"), home.agent.office_id
    neighbour = newest.filter(agent__office=office).exclude(pk=home.pk).first()
    stranger = newest.exclude(agent__office=office).select_related("agent").first()
    page = reverse("cached-list")
    return [
        ("The first page", page),
        ("All of its office", f"{page}?office={office}"),
        *([("All of another office", f"{page}?office={stranger.agent.office_id}")] if stranger else []),
        ("This listing", reverse("cached-detail", args=[home.pk])),
        *([("Another of its office", reverse("cached-detail", args=[neighbour.pk]))] if neighbour else []),
        *([("One of another office", reverse("cached-detail", args=[stranger.pk]))] if stranger else []),
    ]


class ChangeView(HomeView):
    """A new value is written: 204 for the page's script, back to the page for a browser without. What is refused, the page says."""

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
            messages.success(request, "Saved. Every read from now on shows it.")
            return redirect("home")
        if by_script:
            return HttpResponse(status=status) if status == 204 else JsonResponse({name: list(wrong) for name, wrong in form.errors.items()}, status=status)
        self.refused = form
        return self.render_to_response(self.get_context_data(), status=status)


def saved(form: ChangeForm) -> int:
    """Save what is valid: 204, or 400 or 503 with errors in the form."""
    if not form.is_valid():
        return 400
    try:
        form.save()
    except DatabaseError as refused:
        form.add_error(None, f"The database says: {refused}")
        return 503
    return 204


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


class BrowsablePage(BrowsableAPIRenderer):
    """DRF's page around an answer. A browser that kept it would show it again on Back, as it was before a change."""

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> Any:
        """As DRF's."""
        renderer_context["response"].headers["Cache-Control"] = "no-cache, no-store"
        return super().render(data, accepted_media_type, renderer_context)


def shows_toolbar(request: HttpRequest) -> bool:
    """In debug, to who is at this machine: on every page but `/`, whose policy would refuse it, and on no program's answer, whose time it would take."""
    here = settings.DEBUG and request.META["REMOTE_ADDR"] in settings.INTERNAL_IPS
    page = "text/html" in request.headers.get("Accept", "") and request.path != "/" and not request.path.startswith("/change/")
    return here and (page or request.path.startswith("/__debug__/"))
