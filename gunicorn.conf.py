"""How the service is served: `gunicorn housing.wsgi` finds this file by itself. What it is at was measured with `make load`, on two cores."""

import os

# A warm read is work for the processor, so more processes than cores only take turns. WEB_CONCURRENCY says how many.
workers = int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1)
# Threads keep connections open, and go on while others wait for the database; more of them would want the interpreter at once.
worker_class = "gthread"
threads = 4
# Longer than a reader who comes back each second or two is away: who must connect anew pays twice.
keepalive = 15
# Loaded once, then forked: what nobody writes to is in memory once. Nothing is connected yet.
preload_app = True
# Its socket wants a home to write to.
control_socket_disable = True
