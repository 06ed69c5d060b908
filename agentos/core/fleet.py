"""The proxies of a region: who is alive, what they offer, and how much they have to do."""

from __future__ import annotations

from collections.abc import Mapping

from agentos.core import messages as m
from agentos.core.liveness import Liveness, Peer


class Fleet(Liveness[m.ProxyBeat]):
    """Living and suspected proxies, as their heartbeats describe them.

    What a choice needs is kept up to date beat by beat: with a thousand proxies it would cost more
    to collect it for each task than everything else that is done for one.
    """

    def __init__(self, suspicion_s: float, resting_s: float | None = None) -> None:
        super().__init__(suspicion_s, resting_s)
        self._owned: dict[str, int] = {}
        self._room: dict[str, float] = {}
        self._agents: frozenset[str] | None = None

    def heard(self, address: str, beat: m.ProxyBeat, now: float) -> bool:
        """Note a heartbeat; return whether the proxy is new, or was suspected until now."""
        known = self.get(address)
        if known is None or known.suspected or known.beat.offers != beat.offers:
            self._agents = None
        news = super().heard(address, beat, now)
        self._refresh(address)
        return news

    def newly_suspected(self, now: float) -> list[str]:
        """The proxies whose silence has become too long since the last call.

        One that was given something has said last that it would rest: its lease begins anew.
        """
        for address, peer in self.items():
            rests = self._rests(address, peer)
            if peer.resting and not rests:
                peer.seen_at = now
            peer.resting = rests
        suspects = super().newly_suspected(now)
        for address in suspects:
            self._refresh(address)
            self._agents = None
        return suspects

    def _rests(self, address: str, peer: Peer[m.ProxyBeat]) -> bool:
        given = peer.given or address in self._owned
        return not (given or peer.beat.calls or peer.beat.claims)

    def owns(self, address: str, tasks: int) -> None:
        """A proxy owns so many tasks now."""
        if tasks:
            self._owned[address] = tasks
        else:
            self._owned.pop(address, None)
        self._refresh(address)

    def agents(self) -> frozenset[str]:
        """Every agent that a living proxy offers."""
        if self._agents is None:
            self._agents = frozenset(
                offer.agent for _, peer in self.living() for offer in peer.beat.offers
            )
        return self._agents

    def capacity(self) -> int:
        """The tasks that the living proxies can walk together."""
        return sum(peer.beat.capacity for _, peer in self.living())

    def room(self) -> Mapping[str, float]:
        """Living proxies with room for another task, with the tasks that each owns."""
        return self._room

    def _refresh(self, address: str) -> None:
        peer, owned = self.get(address), self._owned.get(address, 0)
        if peer is not None and not peer.suspected and owned < peer.beat.capacity:
            self._room[address] = float(owned)
        else:
            self._room.pop(address, None)

    def loads(self, agent: str) -> dict[str, float]:
        """Proxies that offer an agent, with the calls that each has, as a share of its slots."""
        return {
            address: (peer.beat.calls + peer.given) / slots
            for address, peer in self.living()
            if (slots := _slots(peer, agent))
        }

    def give(self, address: str, agent: str) -> float:
        """Count a call that its proxy's next heartbeat will count itself; returns its new load."""
        peer = self.get(address)
        assert peer is not None, f"{address} was chosen, so it is known"
        peer.given += 1
        return (peer.beat.calls + peer.given) / max(1, _slots(peer, agent))

    def report(self) -> tuple[m.ProxyInfo, ...]:
        """What the gateway is told of each."""
        return tuple(
            m.ProxyInfo(
                address=address,
                alive=not peer.suspected,
                tasks=self._owned.get(address, 0),
                calls=peer.beat.calls,
                agents=tuple(offer.agent for offer in peer.beat.offers),
            )
            for address, peer in self.items()
        )


def _slots(peer: Peer[m.ProxyBeat], agent: str) -> int:
    return next((offer.slots for offer in peer.beat.offers if offer.agent == agent), 0)
