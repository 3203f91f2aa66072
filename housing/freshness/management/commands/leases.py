"""`manage.py leases`: whose COMMIT readers are waiting for, or would be if it had not died."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...journal import Lease, Unreachable, journal

RECOVERING = "recovering"
"""The id of the lease on everything with which a journal that was found missing begins."""


class Command(BaseCommand):
    """One line for each open lease, the first to run out first."""

    help = (
        "Show the leases that are open: what a transaction is committing now, or was when its process died. "
        "What depends on their tags is answered from the database until they are closed or have run out. Changes nothing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Raises CommandError where Redis does not answer."""
        try:
            leases = journal.leases()
        except Unreachable as away:
            raise CommandError(str(away)) from away
        if not leases:
            self.stdout.write("No lease is open.")
        for lease, seconds in leases.items():
            self.stdout.write(f"{lease.id}  {seconds:.1f} s left  {described(lease)}")


def described(lease: Lease) -> str:
    """What it is on."""
    return "everything: the journal is new, and a writer may not know it" if lease.id == RECOVERING else ", ".join(lease.tags)
