"""How long a read takes. Counted work holds on any machine; ratios hold in one run; milliseconds come last, and are generous.

`pytest --benchmark-only` measures; without it each budget runs once, for its counts alone.
"""

import math
from functools import partial

import pytest

from conftest import DOORS, forget_everything


@pytest.mark.benchmark(group="a page of twenty")
@pytest.mark.parametrize(
    ("approach", "counted", "of_naive", "milliseconds", "because"),
    [
        ("naive", 61, None, None, "naive is 1 query for the page and 20 × (location, agent, office)"),
        ("optimized", 1, 0.6, None, "optimized is 1 query and serializing, so at most 0.6 × naive"),
        ("cold", 1, 0.6, 20, "cold is optimized and two round trips to Redis, so at most 0.6 × naive, and 20 ms"),
        ("warm", 0, 0.2, 4, "warm is one round trip to Redis and serializes nothing, so at most 0.2 × naive, and 4 ms"),
    ],
    ids=["naive", "optimized", "cold", "warm"],
)
def test_a_page_of_twenty_stays_within_its_budget(twenty_properties, read, benchmark, latency, queries, approach, counted, of_naive, milliseconds, because):
    """Each round times the naive page and this one, so that a busy machine is busy for both."""
    door = approach if approach in DOORS else "cached"
    prepare = {"cold": forget_everything, "warm": partial(read, "cached")}.get(approach, bool)

    prepare()
    with queries.exactly(counted, because=because):
        assert len(read(door).rows) == 20

    benchmark.name = approach
    timings = latency.interleaved(benchmark, partial(read, door), to=partial(read, "naive"), prepare=prepare)
    timings.at_most(of_naive or math.inf, because=because)
    timings.within(milliseconds or math.inf, because=because)
