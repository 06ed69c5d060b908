"""The fence: epochs are a strict total order in which every claim wins over what it replaces."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentos.core.epoch import EPOCH_MAX, Epoch

components = st.one_of(st.integers(0, 4), st.integers(0, EPOCH_MAX - 1))
epochs = st.builds(Epoch, components, components)


@given(epochs)
def test_irreflexive(a: Epoch) -> None:
    """An epoch is never newer than itself: the same owner twice is a duplicate, not a successor."""
    same = Epoch(a.global_epoch, a.regional_epoch)
    assert not a > same
    assert not a < same
    assert a == same


@given(epochs, epochs)
def test_asymmetric(a: Epoch, b: Epoch) -> None:
    """Two owners can never both win over each other."""
    assert not (a > b > a)


@given(epochs, epochs, epochs)
def test_transitive(a: Epoch, b: Epoch, c: Epoch) -> None:
    """Who wins over a winner wins over the loser as well, in whatever order messages arrive."""
    low, middle, high = sorted((a, b, c))
    assert low <= middle <= high
    assert low <= high
    if a > b > c:
        assert a > c


@given(epochs, epochs)
def test_total(a: Epoch, b: Epoch) -> None:
    """Of any two epochs, one is newer or they are the same: no write is left undecided."""
    assert (a > b) + (b > a) + (a == b) == 1


@given(epochs)
def test_a_claim_wins_over_what_it_replaces(held: Epoch) -> None:
    """Each claim, of a gateway or of a region, issues an epoch newer than the one that was held."""
    assert held.next_regional() > held
    assert held.next_global() > held
    assert held.next_global() > held.next_regional()


@given(components, components, components)
def test_region_failover_wins_over_the_whole_region(g: int, r: int, s: int) -> None:
    """After (g+1, 0) nothing that the lost region issued or still issues, (g, r), wins again."""
    taken = Epoch(g, r).next_global()
    assert taken == Epoch(g + 1, 0)
    assert taken > Epoch(g, s)
    assert taken > Epoch(g, s).next_regional()


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_claims_only_ever_rise(claims: list[bool]) -> None:
    """A history of claims, mixed in any way, is strictly rising: no epoch is issued twice."""
    history = [Epoch()]
    for by_gateway in claims:
        history.append(history[-1].next_global() if by_gateway else history[-1].next_regional())
    assert all(later > earlier for earlier, later in pairwise(history))
    assert len(set(history)) == len(history)


@given(epochs, epochs)
def test_the_order_is_lexicographic(a: Epoch, b: Epoch) -> None:
    """The global component decides; the regional one only between equals."""
    assert (a > b) == (msgspec.to_builtins(a) > msgspec.to_builtins(b))


# -- why neither reading of the specification's rule will do --------------------------------------


def literal_rule(new: Epoch, old: Epoch) -> bool:
    """The specification's words: accept when g2 >= g1 and r2 > g1."""
    return new.global_epoch >= old.global_epoch and new.regional_epoch > old.global_epoch


def component_wise_rule(new: Epoch, old: Epoch) -> bool:
    """The words with their presumed misprint mended: accept when g2 >= g1 and r2 > r1."""
    return new.global_epoch >= old.global_epoch and new.regional_epoch > old.regional_epoch


def test_the_literal_rule_is_no_order() -> None:
    """By the literal rule (1,2) beats itself, and (1,5) and (1,2) beat each other."""
    assert literal_rule(Epoch(1, 2), Epoch(1, 2))
    assert literal_rule(Epoch(1, 5), Epoch(1, 2))
    assert literal_rule(Epoch(1, 2), Epoch(1, 5))


@given(components, components)
@example(1, 7)
def test_the_literal_rule_refuses_a_failover(g: int, r: int) -> None:
    """By the literal rule no gateway's claim (g+1, 0) is ever accepted: 0 exceeds no epoch."""
    assert not literal_rule(Epoch(g, r).next_global(), Epoch(g, r))


def test_the_component_wise_rule_prefers_the_deposed_owner() -> None:
    """With (1,7) stored it refuses the new owner (2,1) and accepts the deposed (1,8)."""
    stored, new_owner, deposed = Epoch(1, 7), Epoch(2, 1), Epoch(1, 8)
    assert not component_wise_rule(new_owner, stored)
    assert component_wise_rule(deposed, stored)
    assert new_owner > stored
    assert new_owner > deposed


@given(components, components)
def test_the_component_wise_rule_leaves_claims_undecided(g: int, r: int) -> None:
    """It decides between a claim and what it replaces in neither direction: it is not total."""
    held, claim = Epoch(g, r), Epoch(g, r).next_global()
    assert not component_wise_rule(claim, held)
    assert not component_wise_rule(held, claim)


# -- the wire -------------------------------------------------------------------------------------


@given(epochs)
def test_travels_as_a_pair(epoch: Epoch) -> None:
    """On the wire an epoch is `[global, regional]`, and comes back the same."""
    text = msgspec.json.encode(epoch)
    assert text == f"[{epoch.global_epoch},{epoch.regional_epoch}]".encode()
    assert msgspec.json.decode(text, type=Epoch) == epoch


@pytest.mark.parametrize(
    "text",
    [
        "[1,-1]",
        "[-1,1]",
        "[1.5,0]",
        "[true,0]",
        '["1",0]',
        "[1,0,0]",
        f"[{EPOCH_MAX + 1},0]",
        f"[0,{2**64}]",
        "{}",
        "null",
        "1",
    ],
)
def test_no_other_pair_is_an_epoch(text: str) -> None:
    """What is not two integers that every JSON reader holds exactly is refused, never rounded."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Epoch)


def test_shown_as_a_pair() -> None:
    """Logs and errors show an epoch as (global, regional)."""
    assert str(Epoch(2, 1)) == "(2, 1)"
