"""The service behind any WSGI server: `gunicorn housing.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "housing.settings")
application = get_wsgi_application()
