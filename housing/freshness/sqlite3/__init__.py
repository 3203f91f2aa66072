"""Django's SQLite backend with leases around COMMIT."""
