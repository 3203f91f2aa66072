"""Each fault of Redis, of PostgreSQL and of the network between them and the service: what a hundred reads lose, whether writes succeed, and how old a
response may be. The service runs as it is deployed: gunicorn with two processes of four threads.

[docs/faults.md](docs/faults.md) has the table. (Real only: embedded servers have no process and no network.)
"""

import pytest

from tests.fixtures.faults import FAULTS
from tests.measurements import faults


@pytest.mark.slow
@pytest.mark.only("real")
def test_reads_are_answered_and_never_older_than_the_bound_during_and_after_each_fault():
    """Only the first reads wait. Without Redis each read has a page, and each write succeeds. (Real only: embedded servers have no process and no network.)"""
    results = faults.measure_all(FAULTS)
    print(faults.table(results))  # noqa: T201  # for a reader of a failure
    assert {result.fault.name: result.broken() for result in results if result.broken()} == {}


def test_the_table_has_the_current_promises():
    """`make faults` writes it, with a measured value in bold where a promise is broken."""
    rows = [faults.row([fault.name, *faults.promised(fault.promise)]) for fault in FAULTS]
    assert faults.DOCUMENT.read_text(encoding="utf-8") == faults.document(rows)
