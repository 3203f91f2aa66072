"""Routes."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from housing import health, home, views
from housing.freshness import serve_metrics

lists = {
    "live/naive": (views.PropertyListView, views.PropertyDetailView),
    "live/optimized": (views.OptimizedPropertyListView, views.OptimizedPropertyDetailView),
    "cached": (views.CachedPropertyListView, views.CachedPropertyDetailView),
}
handler400, handler500 = "housing.refusals.bad_request", "housing.refusals.error"
urlpatterns = [
    *(path(f"api/properties/{variant}/", page.as_view(), name=f"{variant.rpartition('/')[2]}-list") for variant, (page, _) in lists.items()),
    *(path(f"api/properties/{variant}/<int:id>/", detail.as_view(), name=f"{variant.rpartition('/')[2]}-detail") for variant, (_, detail) in lists.items()),
    path("", home.HomeView.as_view(), name="home"),
    path("favicon.ico", home.favicon, name="favicon"),
    path("change/property/<int:pk>/", home.ChangeView.as_view(form_class=home.PriceForm), name="change-property"),
    path("change/office/<int:pk>/", home.ChangeView.as_view(form_class=home.OfficeForm), name="change-office"),
    path("spec/", home.spec, name="spec"),
    path("spec/tools/", home.spec, {"tools": True}, name="spec-tools"),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path(
        "api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema", template_name="housing/docs.html", http_method_names=["get", "head"]), name="docs"
    ),
    re_path(r"^api/(?:[\s\S]*/)?\Z", views.unknown_path),
    *(path(url.removeprefix("/"), check, name="-".join(url.strip("/").split("/"))) for url, check in health.CHECKS.items()),
    path("metrics/", serve_metrics, name="metrics"),
    path("admin/", admin.site.urls),
]
if settings.DEBUG:
    urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))
