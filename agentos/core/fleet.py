"""The proxies of a region: who is alive, what they offer, and how much they have to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, KeysView, Mapping

from agentos.core import messages as m
from agentos.core.liveness import Liveness, Peer
from agentos.core.rooms import Rooms


class Fleet(Liveness[m.ProxyBeat]):
    """Living and suspected proxies, as their heartbeats describe them.

    What a choice needs is kept up to date beat by beat: with a thousand proxies it would cost more
    to collect it for each task than everything else that is done for one.
    """

    def __init__(self, suspicion_s: float, resting_s: float | None = None) -> None:
        super().__init__(suspicion_s, resting_s)
        self._owned: dict[str, int] = {}
        self._rooms = Rooms()
        """Of the living ones."""
        self._loads: defaultdict[str, dict[str, float]] = defaultdict(dict)
        """Living proxies by agent: their calls as a share of their slots."""
        self._changed: set[str] = set()
        """Proxies of which it is to be looked whether they rest; few of many, at any time."""
        self._awake: set[str] = set()
        self._reported: tuple[m.ProxyInfo, ...] | None = None
        """What was reported last, if nothing has changed since."""

    def heard(self, address: str, beat: m.ProxyBeat, now: float) -> bool:
        """Note a heartbeat; return whether the proxy is new, or was suspected until now."""
        known = self.get(address)
        if known is not None and known.beat.offers != beat.offers:
            self._withdraw(address, known)
        same = known is not None and known.beat == beat and not known.given
        news = super().heard(address, beat, now)
        if news or not same:
            self._refresh(address)
        self._changed.add(address)
        return news

    def newly_suspected(self, now: float) -> list[str]:
        """The proxies whose silence has become too long since the last call.

        One that was given something has said last that it would rest: its lease begins anew. So
        does everybody's who rests when somebody is suspected. They may have died of the same cause
        long ago, and a task would lose one owner after the other to that.
        """
        self._expect_all(now)
        suspects = super().newly_suspected(now)
        for address in suspects:
            self._refresh(address)
        if suspects:
            for address, peer in self.living():
                if peer.resting:
                    peer.doubted = True
                    self._changed.add(address)
            self._expect_all(now)
        return suspects

    def to_rouse(self) -> list[str]:
        """Proxies that have said that they rest, and must be heard soon all the same.

        They have been given something, or somebody else is suspected. Whether they have heard of
        it is not known: only from the next heartbeat on, silence is a sign.
        """
        awake = [(address, self.get(address)) for address in sorted(self._awake)]
        return [
            address
            for address, peer in awake
            if peer and not (peer.suspected or peer.beat.calls or peer.beat.claims)
        ]

    def any_expected(self) -> bool:
        """Whether the next heartbeat of anybody is expected soon: not if all of them rest."""
        return bool(self._awake or self._changed)

    def _expect_all(self, now: float) -> None:
        """Note which proxies may be silent for long; those that may not any more, from now on."""
        for address in self._changed:
            peer = self.get(address)
            if peer is None:
                self._awake.discard(address)
                continue
            given = peer.given or peer.doubted or address in self._owned
            rests = not (given or peer.beat.calls or peer.beat.claims)
            if peer.resting and not rests:
                peer.seen_at = now
            peer.resting = rests
            (self._awake.discard if rests else self._awake.add)(address)
        self._changed.clear()

    def forget_silent(self, now: float) -> None:
        """Drop those that have been suspected for so long that nobody asks after them."""
        known = len(self)
        super().forget_silent(now)
        if len(self) < known:
            self._awake = {address for address in self._awake if self.get(address)}
            self._reported = None

    def owns(self, address: str, tasks: int) -> None:
        """A proxy owns so many tasks now."""
        if tasks:
            self._owned[address] = tasks
        else:
            self._owned.pop(address, None)
        self._refresh(address)

    def agents(self) -> KeysView[str]:
        """Every agent that a living proxy offers."""
        return self._loads.keys()

    def capacity(self) -> int:
        """The tasks that the living proxies can walk together."""
        return sum(peer.beat.capacity for _, peer in self.living())

    def room(self, agents: Collection[str]) -> Mapping[str, float]:
        """Living proxies with room for a task of these agents, with the tasks that each owns."""
        return self._rooms.for_task(agents)

    def gives_back(self, address: str, claim: m.Held) -> bool:
        """Whether a proxy is stopping, and does not hold this claim: it will not, either."""
        peer = self.get(address)
        return peer is not None and not peer.beat.capacity and claim not in peer.beat.claims

    def incarnation(self, address: str) -> str:
        """Which of the processes that have had this name is alive; "" if none is known."""
        peer = self.get(address)
        return peer.beat.incarnation if peer is not None else ""

    def loads(self, agent: str) -> Mapping[str, float]:
        """Proxies that offer an agent, with the calls that each has, as a share of its slots."""
        return self._loads.get(agent, {})

    def give(self, address: str) -> None:
        """Count a call that its proxy's next heartbeat will count itself."""
        peer = self.get(address)
        assert peer is not None, f"{address} was chosen, so it is known"
        peer.given += 1
        self._refresh(address)

    def report(self) -> tuple[m.ProxyInfo, ...]:
        """What the gateway is told of each."""
        if self._reported is None:
            self._reported = self._infos()
        return self._reported

    def _infos(self) -> tuple[m.ProxyInfo, ...]:
        return tuple(
            m.ProxyInfo(
                address=address,
                alive=not peer.suspected,
                tasks=self._owned.get(address, 0),
                calls=peer.beat.calls,
                capacity=peer.beat.capacity,
                agents=tuple(offer.agent for offer in peer.beat.offers),
            )
            for address, peer in self.items()
        )

    def _refresh(self, address: str) -> None:
        self._reported = None
        self._changed.add(address)
        peer, owned = self.get(address), self._owned.get(address, 0)
        if peer is None:
            return
        if peer.suspected:
            self._withdraw(address, peer)
            return
        self._rooms.put(address, _agents(peer), owned, peer.beat.capacity)
        for offer in peer.beat.offers:
            calls = peer.beat.calls + peer.given
            self._loads[offer.agent][address] = calls / offer.slots

    def _withdraw(self, address: str, peer: Peer[m.ProxyBeat]) -> None:
        self._rooms.drop(address)
        for offer in peer.beat.offers:
            loads = self._loads.get(offer.agent)
            if loads is not None and loads.pop(address, None) is not None and not loads:
                del self._loads[offer.agent]


def _agents(peer: Peer[m.ProxyBeat]) -> frozenset[str]:
    return frozenset(offer.agent for offer in peer.beat.offers)
