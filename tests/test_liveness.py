"""Who is alive: several misses make a suspect, our own pause makes none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentos.core.liveness import FORGET_AFTER, Liveness

SUSPICION_S = 1.5


def test_silence_makes_a_suspect_once() -> None:
    """A peer is reported when its silence passes the suspicion time, once, and not before."""
    peers: Liveness[str] = Liveness(SUSPICION_S)
    assert peers.heard("a", "beat", 0.0)
    reported = [(t, peers.newly_suspected(t)) for t in (0.5, 1.0, 1.5, 1.75, 2.0, 2.5)]
    assert [t for t, suspects in reported if suspects] == [1.75]
    assert not peers.alive("a")
    assert list(peers.living()) == []


def test_a_heartbeat_clears_the_suspicion() -> None:
    """A peer that is heard again is news, alive, and may be suspected again later."""
    peers: Liveness[str] = Liveness(SUSPICION_S)
    peers.heard("a", "1", 0.0)
    for t in (1.0, 2.0):
        peers.newly_suspected(t)
    assert peers.heard("a", "2", 2.1)
    assert peers.alive("a")
    assert not peers.heard("a", "3", 2.2)
    assert [peers.newly_suspected(t) for t in (3.0, 4.0)] == [[], ["a"]]


def test_our_own_pause_accuses_nobody() -> None:
    """After our loop stood still everybody has a fresh lease: the pause was ours."""
    peers: Liveness[str] = Liveness(SUSPICION_S)
    peers.heard("a", "beat", 0.0)
    peers.newly_suspected(0.5)
    assert peers.newly_suspected(60.0) == []
    assert peers.newly_suspected(61.0) == []
    assert peers.newly_suspected(62.0) == ["a"]


def silent_of(all_: int, silent: int, until: float) -> int:
    """How many of `all_` peers are suspected at `until`, when so many are silent from 0.0 on."""
    peers: Liveness[None] = Liveness(SUSPICION_S)
    now = 0.0
    while now <= until:
        for i in range(all_):
            if now == 0.0 or i >= silent:
                peers.heard(str(i), None, now)
        peers.newly_suspected(now)
        now += 0.25
    return sum(peer.suspected for _, peer in peers.items())


def test_most_of_many_are_slow_together_rather_than_dead() -> None:
    """Most of many silent at once are given four times as long; a few, or the minority, are not."""
    assert silent_of(20, 11, until=5.0) == 0
    assert silent_of(20, 11, until=7.0) == 11
    assert silent_of(20, 10, until=2.0) == 10
    assert silent_of(7, 7, until=2.0) == 7


def test_a_peer_that_rests_is_given_longer() -> None:
    """A peer that has said that it has nothing to do is expected less often."""
    peers: Liveness[None] = Liveness(SUSPICION_S, 3 * SUSPICION_S)
    for address in ("busy", "resting"):
        peers.heard(address, None, 0.0)
    peer = peers.get("resting")
    assert peer is not None
    peer.resting = True
    suspected = {n / 4: peers.newly_suspected(n / 4) for n in range(1, 25)}
    assert {t: who for t, who in suspected.items() if who} == {1.75: ["busy"], 4.75: ["resting"]}


def test_the_long_dead_are_forgotten() -> None:
    """A peer that never comes back does not stay in the list for ever; a living one does."""
    peers: Liveness[str] = Liveness(SUSPICION_S)
    peers.heard("a", "beat", 0.0)
    now = 0.0
    while now < FORGET_AFTER * SUSPICION_S + 5:
        now += 1.0
        peers.heard("b", "beat", now)
        peers.newly_suspected(now)
        peers.forget_silent(now)
    assert [address for address, _ in peers.items()] == ["b"]


@given(steps=st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.7)), max_size=60))
def test_nobody_is_suspected_early_or_kept_late(steps: list[tuple[bool, float]]) -> None:
    """With a loop that runs, a peer is suspected exactly when its last heartbeat is too old."""
    peers: Liveness[None] = Liveness(SUSPICION_S)
    now = seen = 0.0
    peers.heard("a", None, now)
    peers.newly_suspected(now)
    for beats, pause in steps:
        now += pause
        if beats:
            peers.heard("a", None, now)
            seen = now
        peers.newly_suspected(now)
        assert peers.alive("a") == (now - seen <= SUSPICION_S)
