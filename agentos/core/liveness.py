"""Who is alive: heartbeats counted on a monotonic clock.

Suspicion is not death (Chandra and Toueg, "Unreliable failure detectors", 1996): what follows
from it is a claim, and the fence makes a wrong suspicion harmless. Heartbeats come from the
peer's actor, so that a program that hangs falls silent even while its sockets answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

BeatT = TypeVar("BeatT")

FORGET_AFTER = 200
"""Suspicion times after which a dead peer is not even listed any more: five minutes by default."""

MANY, COMMON_CAUSE = 8, 4
"""From how many peers that are silent at once, if most are, one cause is presumed; and for how many
suspicion times they are waited for then."""


class Peer(Generic[BeatT]):
    """One peer: its last heartbeat, when it came, and what was given to it since."""

    __slots__ = ("beat", "doubted", "given", "resting", "seen_at", "suspected")

    def __init__(self, beat: BeatT, now: float) -> None:
        self.beat = beat
        self.seen_at = now
        self.given = 0
        self.doubted = False
        """Whether another heartbeat is wanted before it is believed to rest: the last one may be
        older than what was given to it, or somebody else was suspected."""
        self.resting = False
        """Whether it is expected less often, because it has nothing to do."""
        self.suspected = False


class Liveness(Generic[BeatT]):
    """The peers of one role, and which of them are suspected.

    Args:
        suspicion_s: seconds of silence after which a peer is suspected.
        resting_s: the same for a peer that has nothing to do.
    """

    def __init__(self, suspicion_s: float, resting_s: float | None = None) -> None:
        self._suspicion_s = suspicion_s
        self._resting_s = suspicion_s if resting_s is None else resting_s
        self._peers: dict[str, Peer[BeatT]] = {}
        self._last_check: float | None = None

    def heard(self, address: str, beat: BeatT, now: float) -> bool:
        """Note a heartbeat; return whether the peer is new, or was suspected until now."""
        peer = self._peers.get(address)
        if peer is None:
            self._peers[address] = Peer(beat, now)
            return True
        back = peer.suspected
        peer.doubted = peer.given > 0
        peer.beat, peer.seen_at, peer.given, peer.suspected = beat, now, 0, False
        return back

    def newly_suspected(self, now: float) -> list[str]:
        """The peers whose silence has become too long since the last call.

        If this has not been called for longer than the suspicion time, it was our own loop that
        stood still: everybody gets a fresh lease instead of being accused of our pause. And if
        most of many peers are silent at once, they are rather slow together (an overloaded machine
        or network, or ourselves) than dead together: to replace them all would only add to the
        load, so each is given several times as long (the thought of Lifeguard: Dadgar, Phillips
        and Currey, "Lifeguard: local health awareness for more accurate failure detection", 2018).
        """
        stalled = self._last_check is not None and now - self._last_check > self._suspicion_s
        self._last_check = now
        if stalled:
            for _, peer in self.living():
                peer.seen_at = now
            return []
        silent = self._silent(now, 1)
        if silent and self._one_cause(len(silent), sum(1 for _ in self.living())):
            silent = self._silent(now, COMMON_CAUSE)
        for _, peer in silent:
            peer.suspected = True
        return [address for address, _ in silent]

    def _one_cause(self, silent: int, living: int) -> bool:
        """Whether so many are silent at once that there is likely one reason for it."""
        return silent >= MANY and 2 * silent > living

    def _silent(self, now: float, times: int) -> list[tuple[str, Peer[BeatT]]]:
        """Those that have been silent for longer than so many times what is allowed."""
        busy, resting = times * self._suspicion_s, times * self._resting_s
        return [
            (address, peer)
            for address, peer in self.living()
            if now - peer.seen_at > (resting if peer.resting else busy)
        ]

    def forget_silent(self, now: float) -> None:
        """Drop those that have been suspected for so long that nobody asks after them."""
        limit = FORGET_AFTER * self._suspicion_s
        for address, peer in list(self._peers.items()):
            if peer.suspected and now - peer.seen_at > limit:
                del self._peers[address]

    def alive(self, address: str) -> bool:
        """Whether it has been heard of and is not suspected."""
        peer = self._peers.get(address)
        return peer is not None and not peer.suspected

    def get(self, address: str) -> Peer[BeatT] | None:
        """The peer of this address, suspected or not."""
        return self._peers.get(address)

    def items(self) -> Iterator[tuple[str, Peer[BeatT]]]:
        """Every peer heard of, in the order of their first heartbeats."""
        return iter(self._peers.items())

    def living(self) -> Iterator[tuple[str, Peer[BeatT]]]:
        """Those that are not suspected."""
        return ((a, p) for a, p in self._peers.items() if not p.suspected)

    def __len__(self) -> int:
        return len(self._peers)
