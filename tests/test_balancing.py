"""Where a task or a call goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.balancing import Balancer, LeastLoaded, Random, make_balancer

PLACES = st.sampled_from(["a", "b", "c", "d"])
LOADS = st.dictionaries(PLACES, st.floats(0, 10))


@given(loads=LOADS, avoid=st.lists(PLACES), chance=st.floats(0, 1, exclude_max=True))
@pytest.mark.parametrize("name", ["least-loaded", "random"])
def test_it_chooses_a_place_and_avoids_if_it_can(
    name: str, loads: dict[str, float], avoid: list[str], chance: float
) -> None:
    """Always one of the places, outside those to avoid if there is one; none only of none."""
    balancer = make_balancer(name, lambda: chance)
    place = balancer.choose(loads, avoid)
    assert (place is None) == (not loads)
    if place is not None:
        assert place in loads
        assert place not in avoid or set(loads) <= set(avoid)


@given(loads=LOADS)
def test_the_least_loaded_is_chosen(loads: dict[str, float]) -> None:
    """No other place has less to do; among equals it is the first by name."""
    place = LeastLoaded().choose(loads)
    if place is not None:
        assert (loads[place], place) == min((load, name) for name, load in loads.items())


@given(loads=st.dictionaries(PLACES, st.floats(0, 10), min_size=1))
def test_random_reaches_every_place(loads: dict[str, float]) -> None:
    """Each place is drawn for an equal share of the chances, whatever its load."""
    count = len(loads)
    chances = iter([(i + 0.5) / count for i in range(count)])
    balancer = Random(lambda: next(chances))
    drawn = [balancer.choose(loads) for _ in loads]
    assert sorted(str(place) for place in drawn) == sorted(loads)


def test_names() -> None:
    """The two names of the configuration give the two policies."""
    balancers: list[Balancer] = [make_balancer(n, lambda: 0.0) for n in ("least-loaded", "random")]
    assert [type(b) for b in balancers] == [LeastLoaded, Random]
