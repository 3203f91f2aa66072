"""`manage.py leases`: the open leases of running or crashed commits."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...breaker import Unreachable
from ...journal import Lease, journal

RECOVERING = "recovering"
"""The id of the lease on everything that a new journal begins with."""


class Command(BaseCommand):
    """Print a line for each open lease, in the order in which they expire."""

    help = (
        "List the open leases: of transactions that are being committed, or whose process died during COMMIT. "
        "Responses with their tags are read from the database until a lease is closed or expires. The command changes nothing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the leases. Raises CommandError if Redis is unreachable."""
        try:
            leases = journal.leases()
        except Unreachable as away:
            raise CommandError(str(away)) from away
        if not leases:
            self.stdout.write("No lease is open.")
        for lease, seconds in leases.items():
            self.stdout.write(f"{lease.id}  {seconds:.1f} s left  {described(lease)}")


def described(lease: Lease) -> str:
    """Return the tags of a lease."""
    return "everything, because the journal is new and a running writer may not know it" if lease.id == RECOVERING else ", ".join(lease.tags)
