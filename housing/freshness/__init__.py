"""A cache of whole responses that is never older than the last committed write: the engine, which knows Django, Redis and SQL, and no model of yours."""
