"""The private methods of Django and psycopg that the engine overrides. Read this list before an upgrade of one of them.

A new release may change a method without notice. Therefore the signatures are compared when the service starts (`checks.py`), and by a spec on every
supported version of Django. Annotations are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from django.utils.module_loading import import_string

OVERRIDDEN: dict[str, dict[str, str]] = {
    # The connection: COMMIT, rollback and savepoints.
    "django.db.backends.base.base.BaseDatabaseWrapper": {
        "_close": "(self)",
        "_commit": "(self)",
        "_rollback": "(self)",
        "_savepoint": "(self, sid)",
        "_savepoint_commit": "(self, sid)",
        "_savepoint_rollback": "(self, sid)",
        "is_usable": "(self)",
        "make_cursor": "(self, cursor)",
        "make_debug_cursor": "(self, cursor)",
        "set_autocommit": "(self, autocommit, force_begin_transaction_with_broken_autocommit=False)",
    },
    "django.db.backends.sqlite3.base.DatabaseWrapper": {
        "_set_autocommit": "(self, autocommit)",
        "get_new_connection": "(self, conn_params)",
    },
    "django.db.backends.postgresql.base.DatabaseWrapper": {"_set_autocommit": "(self, autocommit)"},
    "django.db.backends.postgresql.psycopg_any.BaseTzLoader": {"load": "(self, data)"},
    # BEGIN in the message of the first statement.
    "psycopg.ClientCursor": {
        "_execute_gen": "(self, query, params=None, *, prepare=None, binary=None)",
        "_execute_send": "(self, query, *, force_extended=False, binary=None)",
        "_set_results": "(self, results)",
        "_start_query": "(self, query=None)",
    },
    # The cursor: every way to send SQL.
    "django.db.backends.utils.CursorWrapper": {
        "_execute": "(self, sql, params, *ignored_wrapper_args)",
        "_executemany": "(self, sql, param_list, *ignored_wrapper_args)",
        "callproc": "(self, procname, params=None, kparams=None)",
        "execute": "(self, sql, params=None)",
        "executemany": "(self, sql, param_list)",
    },
    # The compilers: reads and writes.
    "django.db.backends.base.operations.BaseDatabaseOperations": {"compiler": "(self, compiler_name)"},
    "django.db.models.sql.compiler.SQLCompiler": {
        "as_sql": "(self, with_limits=True, with_col_aliases=False)",
        "compile": "(self, node)",
        "execute_sql": "(self, result_type='multi', chunked_fetch=False, chunk_size=100)",
        "pre_sql_setup": "(self, with_col_aliases=False)",
    },
    "django.db.models.sql.compiler.SQLInsertCompiler": {"execute_sql": "(self, returning_fields=None)"},
    "django.db.models.sql.compiler.SQLUpdateCompiler": {
        "execute_returning_sql": "(self, returning_fields)",  # Django 6.0 and later
        "execute_sql": "(self, result_type)",
    },
    "django.db.models.sql.compiler.SQLDeleteCompiler": {
        "execute_sql": "(self, result_type='multi', chunked_fetch=False, chunk_size=100)",
    },
}
"""class → method → its signature in Django 5.2, 6.0 and 6.1, and in psycopg 3.3."""


def _signature(method: Any) -> str:
    found, empty = inspect.signature(method), inspect.Signature.empty
    return str(found.replace(parameters=[each.replace(annotation=empty) for each in found.parameters.values()], return_annotation=empty))


def changed() -> Iterator[str]:
    """Yield a sentence for each method whose signature has changed in the installed version."""
    for path, methods in OVERRIDDEN.items():
        owner = import_string(path)
        for name, known in methods.items():
            method = getattr(owner, name, None)
            if method is None and name == "execute_returning_sql":
                continue
            found = "nothing" if method is None else _signature(method)
            if found != known:
                yield f"{path}.{name} is {found} in the installed version; the engine expects {known}."
