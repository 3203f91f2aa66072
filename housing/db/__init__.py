"""The commit: a lease before it, a close after it (`commit.py`), on Django's own database backends."""
