"""How long a read takes. Counted work holds on any machine; ratios hold in one run; milliseconds come last, and are generous.

`pytest --benchmark-only` measures; without it each budget runs once, for its counts alone.
"""

from functools import partial

import pytest

from conftest import DOORS, forget_everything

COUNTED = {
    "naive": (61, "1 page + 20 × (location, agent, office)"),
    "optimized": (1, "one SELECT joins location, agent and office"),
    "cold": (1, "one SELECT joins location, agent and office"),
    "warm": (0, "the page is remembered"),
}
OF_NAIVE = {
    "optimized": (0.6, "it asks once instead of 61 times; what is left is serializing"),
    "cold": (0.6, "it is the optimized page and two round trips to Redis"),
    "warm": (0.2, "it is one round trip to Redis, and serializes nothing"),
}
MILLISECONDS = {"cold": (20, "nobody notices"), "warm": (4, "nobody notices ten of them")}


@pytest.mark.benchmark(group="a page of twenty")
@pytest.mark.parametrize("approach", COUNTED)
def test_a_page_of_twenty_stays_within_its_budget(twenty_properties, read, benchmark, latency, queries, approach):
    """Each round times the naive page and this one, so that a busy machine is busy for both."""
    door = approach if approach in DOORS else "cached"
    prepare = {"cold": forget_everything, "warm": partial(read, "cached")}.get(approach, bool)
    counted, because = COUNTED[approach]

    prepare()
    with queries.exactly(counted, because=because):
        assert len(read(door).rows) == 20

    timings = latency.interleaved(benchmark, partial(read, door), to=partial(read, "naive"), prepare=prepare)
    if timings:
        judge(timings, approach)
        benchmark.stats.name = approach if approach == "naive" else f"{approach}: {timings.ratio:.3f} × naive"


def judge(timings, approach):
    """Hold one approach's timings against its budgets."""
    if approach in OF_NAIVE:
        budget, because = OF_NAIVE[approach]
        timings.at_most(budget, because=because)
    if approach in MILLISECONDS:
        budget, because = MILLISECONDS[approach]
        timings.within(budget, because=because)
