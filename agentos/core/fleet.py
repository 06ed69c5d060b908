"""The proxies of a region: who is alive, what they offer, and how much they have to do."""

from __future__ import annotations

from collections.abc import Mapping

from agentos.core import messages as m
from agentos.core.liveness import Liveness, Peer


class Fleet(Liveness[m.ProxyBeat]):
    """Living and suspected proxies, as their heartbeats describe them."""

    def agents(self) -> set[str]:
        """Every agent that a living proxy offers."""
        return {offer.agent for _, peer in self.living() for offer in peer.beat.offers}

    def capacity(self) -> int:
        """The tasks that the living proxies can walk together."""
        return sum(peer.beat.capacity for _, peer in self.living())

    def room(self, owned: Mapping[str, int]) -> dict[str, float]:
        """Proxies with room for another task, with the tasks that each owns."""
        return {
            address: float(owned.get(address, 0))
            for address, peer in self.living()
            if owned.get(address, 0) < peer.beat.capacity
        }

    def loads(self, agent: str) -> dict[str, float]:
        """Proxies that offer an agent, with the calls that each has, as a share of its slots."""
        return {
            address: (peer.beat.calls + peer.given) / slots
            for address, peer in self.living()
            if (slots := _slots(peer, agent))
        }

    def give(self, address: str) -> None:
        """Count a call that its proxy's next heartbeat will count itself."""
        peer = self.get(address)
        if peer is not None:
            peer.given += 1

    def report(self, owned: Mapping[str, int]) -> tuple[m.ProxyInfo, ...]:
        """What the gateway is told of each."""
        return tuple(
            m.ProxyInfo(
                address=address,
                alive=not peer.suspected,
                tasks=owned.get(address, 0),
                calls=peer.beat.calls,
                agents=tuple(offer.agent for offer in peer.beat.offers),
            )
            for address, peer in self.items()
        )


def _slots(peer: Peer[m.ProxyBeat], agent: str) -> int:
    return next((offer.slots for offer in peer.beat.offers if offer.agent == agent), 0)
