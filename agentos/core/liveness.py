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


class Peer(Generic[BeatT]):
    """One peer: its last heartbeat, when it came, and what was given to it since."""

    __slots__ = ("beat", "given", "seen_at", "suspected")

    def __init__(self, beat: BeatT, now: float) -> None:
        self.beat = beat
        self.seen_at = now
        self.given = 0
        self.suspected = False


class Liveness(Generic[BeatT]):
    """The peers of one role, and which of them are suspected.

    Args:
        suspicion_s: seconds of silence after which a peer is suspected.
    """

    def __init__(self, suspicion_s: float) -> None:
        self._suspicion_s = suspicion_s
        self._peers: dict[str, Peer[BeatT]] = {}
        self._last_check: float | None = None

    def heard(self, address: str, beat: BeatT, now: float) -> bool:
        """Note a heartbeat; return whether the peer is new, or was suspected until now."""
        peer = self._peers.get(address)
        if peer is None:
            self._peers[address] = Peer(beat, now)
            return True
        back = peer.suspected
        peer.beat, peer.seen_at, peer.given, peer.suspected = beat, now, 0, False
        return back

    def newly_suspected(self, now: float) -> list[str]:
        """The peers whose silence has become too long since the last call.

        If this has not been called for longer than the suspicion time, it was our own loop that
        stood still: everybody gets a fresh lease instead of being accused of our pause.
        """
        stalled = self._last_check is not None and now - self._last_check > self._suspicion_s
        self._last_check = now
        suspects = []
        for address, peer in self._peers.items():
            if peer.suspected:
                continue
            if stalled:
                peer.seen_at = now
            elif now - peer.seen_at > self._suspicion_s:
                peer.suspected = True
                suspects.append(address)
        return suspects

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
