"""The cache's page in the admin: its state, and the entry of a URL with its tags, age and freshness. For superusers.

The page has no model, because a model without a table would need a migration. Django imports this module only if the admin is installed.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite, site
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_http_methods

from . import operations
from .breaker import Unreachable
from .identity import Unidentified
from .journal import Inspected, journal
from .management.commands.cache import duration, lines_of, size
from .settings import conf

FRESHNESS = {
    "fresh": "fresh: a read is a hit",
    "unverified": "not verified within the last {bound:g} s: reads use the database until it is",
    "raced": "stale: a write of {which} was committed after it was read",
    "leased": "stale: a transaction that writes {which} is being committed, or died during COMMIT",
    "recovering": "stale: the journal is new, and a running writer may not know it",
    "dropped": "stale: everything was invalidated, or it is older than the journal's records",
    "lost": "stale: it was read with another journal, which Redis has lost",
}
"""The sentence for each verdict of `Journal.inspect`."""


class CacheAdmin:
    """Adds the page to an admin site: its URL, and its link in the index."""

    def __init__(self, site: AdminSite) -> None:
        self.site, self.urls, self.apps = site, site.get_urls, site.get_app_list
        site.get_urls, site.get_app_list = self.get_urls, self.get_app_list  # type: ignore[method-assign]  # of this site only, whatever its class

    def get_urls(self) -> list[Any]:
        """Return the URLs of the site and that of the page."""
        view = self.site.admin_view(require_http_methods(["GET", "HEAD", "POST"])(self.page))
        return [path("freshness/cache/", view, name="freshness_cache"), *self.urls()]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Return the apps of the index. A superuser sees the cache as the last of them."""
        listed: list[Any] = self.apps(request, app_label)
        if app_label is not None or not is_allowed(request):
            return listed
        url = reverse("admin:freshness_cache", current_app=self.site.name)
        model = {"name": "Cache", "object_name": "Cache", "perms": {"view": True}, "admin_url": url, "add_url": None, "view_only": True}
        return [*listed, {"name": "Freshness", "app_label": "freshness", "app_url": url, "has_module_perms": True, "models": [model]}]

    def page(self, request: HttpRequest) -> HttpResponse:
        """Show the state and the entry of the URL in the parameter `url`; a POST invalidates that entry."""
        if not is_allowed(request):
            return TemplateResponse(request, "freshness/cache.html", self.site.each_context(request) | {"title": "Cache", "refused": True}, status=403)
        url = (request.POST if request.method == "POST" else request.GET).get("url", "").strip()
        context: dict[str, Any] = {"title": "Cache", "url": url}
        try:
            key = key_of(request, url) if url else None
            if key and request.method == "POST":
                journal.invalidate_entry(key)
                messages.success(request, "Invalidated. The next read uses the database.")
                return redirect(f"{request.path}?{request.GET.urlencode()}" if request.GET else request.path)
            context |= {"key": key, "entry": key and shown(journal.inspect(key))}
        except operations.NotAsked as why:
            context["problem"] = str(why)
        except (Unreachable, Unidentified, DatabaseError) as error:
            context["problem"] = " ".join(str(error).split())
        return TemplateResponse(request, "freshness/cache.html", self.site.each_context(request) | context | state())


def is_allowed(request: HttpRequest) -> bool:
    """Whether the user may see the page and invalidate entries."""
    return bool(request.user.is_active and request.user.is_superuser)


def key_of(request: HttpRequest, url: str) -> str:
    """Return the key of the response at a URL. A path is one of this host."""
    with operations.asking(f"{request.scheme}://{request.get_host()}{url}" if url.startswith("/") else url) as asked:
        return asked.key


def shown(entry: Inspected | None) -> dict[str, Any] | None:
    """Return what the page shows of an entry."""
    if entry is None:
        return None
    return {
        "freshness": FRESHNESS[entry.verdict].format(which=entry.which, bound=conf.MAX_STALENESS),
        "age": duration(entry.age),
        "left": duration(max(entry.left, 0)),
        "size": size(len(entry.body)),
        "etag": entry.etag,
        "tags": entry.tags,
    }


def state() -> dict[str, Any]:
    """Return the lines of the state, without the number of entries, because it takes long to count them."""
    try:
        return {"state": list(lines_of(operations.status(with_entries=False)))}
    except Unreachable as away:
        return {"state": [("server", str(away))]}


CacheAdmin(site)
