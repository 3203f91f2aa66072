"""Django's SQLite backend, with our COMMIT."""
