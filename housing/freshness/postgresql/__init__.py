"""Django's PostgreSQL backend with leases around COMMIT."""
