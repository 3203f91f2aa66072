"""A housing portal's listing API, which exists to satisfy the specs in `tests/`."""
