# The service. Built by `make up`, which takes PYTHON_IMAGE from images.env.
ARG PYTHON_IMAGE

# pip and its files stay in this stage.
FROM ${PYTHON_IMAGE} AS packages
COPY requirements-image.lock /
RUN python3 -m venv /venv && /venv/bin/pip install --quiet --no-cache-dir --require-hashes --only-binary :all: --requirement /requirements-image.lock

FROM ${PYTHON_IMAGE}
RUN useradd --system --no-create-home --shell /usr/sbin/nologin housing
COPY --from=packages /venv /venv
WORKDIR /srv/housing
COPY manage.py gunicorn.conf.py ./
COPY housing housing
ENV PATH=/venv/bin:$PATH DJANGO_SETTINGS_MODULE=housing.settings PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER housing
EXPOSE 8000
# At the address of the health checks alone, which no slow client can keep busy.
ENV HEALTH_BIND=127.0.0.1:8081
HEALTHCHECK --interval=3s --timeout=5s --retries=20 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/health/', timeout=3)"]
# gunicorn.conf.py has the settings of the server, which is granian in processes of gunicorn. WEB_CONCURRENCY sets the number of workers.
CMD ["gunicorn", "housing.wsgi", "--bind", "0.0.0.0:8000"]
