"""Django's PostgreSQL backend, with our COMMIT."""
