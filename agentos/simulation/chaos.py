"""Carries the plan of faults out, and heals everything at its end."""

from __future__ import annotations

from collections.abc import Sequence

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.simulation.faults import Armed, Fault
from agentos.simulation.hosts import Hosts
from agentos.simulation.ledger import Ledger
from agentos.simulation.links import Lane
from agentos.simulation.network import Network
from agentos.simulation.port import World
from agentos.simulation.store import StoreHost
from agentos.simulation.trace import describe

FAR = 1_000
"""Epochs so far ahead that no claim will issue them."""
ON_MESSAGES = frozenset({"drop", "delay", "duplicate", "reorder", "flap"})


class Chaos:
    """What goes wrong in a run.

    Args:
        world: the simulation.
        network: whose links break.
        hosts: whose processes die.
        store: whose disk fails.
        ledger: the tasks, for messages that are forged.
    """

    def __init__(
        self, world: World, network: Network, hosts: Hosts, store: StoreHost, ledger: Ledger
    ) -> None:
        self._world = world
        self._network = network
        self._hosts = hosts
        self._store = store
        self._ledger = ledger
        self._dead: set[str] = set()

    def inject(self, fault: Fault, _: object = None) -> None:
        """Let one fault happen, or wait for the message that it is meant for."""
        process = self._network.processes[fault.target]
        match fault.kind:
            case "crash" | "death":
                self._world.kill(process, fault.for_s)
                if fault.kind == "death":
                    self._world.hit("death", fault.target)
                    self._dead.add(fault.target)
            case "pause":
                self._hosts.pause(process, fault.for_s)
            case "drain":
                self._hosts.drain(process, fault.for_s)
            case "partition" | "one_way":
                self._cut(fault)
            case "storage_slow":
                self._world.hit("storage_slow", f"for {fault.for_s:.2f} s")
                self._store.slow_until = self._world.now + fault.for_s
            case "forge":
                self._forge(fault)
            case kind if kind in ON_MESSAGES:
                assert process.uplink is not None, "the store has no link of its own"
                armed = _armed(fault)
                for lane in process.uplink.lanes(up=fault.up):  # whichever the message takes
                    lane.armed.append(armed)
            case _:
                process.armed.append(_armed(fault))

    def heal(self, _a: object = None, _b: object = None) -> None:
        """Nothing goes wrong from now on, and whatever is broken is made whole."""
        self._world.trouble()
        self._world.show("-- everything heals")
        self._store.slow_until = 0.0
        for process in self._network.processes.values():
            process.armed.clear()
            if process.uplink is not None:
                for lane in process.uplink.all_lanes():
                    lane.armed.clear()
                    lane.cuts = 0
        self._network.changed()
        for process in list(self._network.processes.values()):
            if not process.alive and process.address not in self._dead:
                self._hosts.start(process, 0.02)
            elif process.paused:
                self._hosts.resume(process, process.incarnation)

    def _forge(self, fault: Fault) -> None:
        """A message that is not its sender's to send, from a process that may be known as him."""
        entries = [e for e in self._ledger.tasks.values() if e.task.owner]
        if not entries:
            return
        entry = entries[int(fault.share * len(entries))]
        task, epoch = entry.task, entry.task.epoch
        if task.state not in m.TERMINAL:
            never = Epoch(epoch.global_epoch + FAR, 0), Epoch(epoch.global_epoch, FAR)
            epoch = (*never, Epoch(1, 0))[fault.number % 3]
        row = m.Row(next(iter(entry.graph.nodes)), '{"value": "forged"}')
        end = m.End("failed", '{"error": {"reason": "forged"}}', "forged")
        question: m.Message = m.Record(
            task_id=task.task_id,
            epoch=epoch,
            rows=() if fault.what == "end" else (row,),
            end=end if fault.what == "end" else None,
        )
        sender = task.owner
        if fault.what == "claim":
            sender = task.region
            question = m.Claim(
                task_id=task.task_id,
                expected=epoch.next_regional(),
                scope="regional",
                claimant=task.region,
                region=task.region,
                owner=task.owner,
                incarnation="forged",
            )
        process = self._network.processes.get(sender)
        if process is not None and process.alive and not process.paused:
            self._world.hit("forge", f"{sender} sends {describe(question)}")
            self._network.send(process, m.Envelope(m.STORE, sender, question))

    def _cut(self, fault: Fault) -> None:
        uplink = self._network.processes[fault.target].uplink
        assert uplink is not None, "the store has no link of its own"
        up, down = uplink.lanes(up=True), uplink.lanes(up=False)
        # A host that is cut off has lost all its links; else it is one of them.
        some = (slice(None), slice(0, 1), slice(1 if len(up) > 1 else 0, None))[fault.number % 3]
        lanes = [*up[some], *down[some]]
        if fault.kind == "one_way":
            lanes = (up if fault.up else down)[some]
        names = ", ".join(lane.name for lane in lanes)
        self._world.hit(fault.kind, f"{names} for {fault.for_s:.2f} s")
        self._network.cut(lanes)
        self._world.at(self._world.now + fault.for_s, self._mend, lanes)

    def _mend(self, lanes: Sequence[Lane], _: object = None) -> None:
        self._world.trouble()
        for lane in lanes:
            lane.cuts = max(0, lane.cuts - 1)
            self._world.show(f"-- {lane.name} is whole again")
        self._network.changed()


def _armed(fault: Fault) -> Armed:
    return Armed(fault.kind, fault.what, fault.for_s, fault.pattern, fault.share)
