"""Scenarios as text: commands, and under each what the cluster does because of it.

The form is that of etcd's raft (`testdata/*.txt`, "datadriven"): a command, a line of dashes, the
output. A scenario runs on the simulator: the real machines, a virtual clock, and faults that come
when the text says so. What always happens (heartbeats, sweeps that find nothing) is left out.

Commands:

    cluster [gateways=1] [regions=1] [proxies=2]   start one, and wait until it has found itself
    submit NAME GRAPH                              GRAPH is `a`, `a->b` or `a*3` (three samples)
    poison NAME GRAPH                              the same, but its calls kill their processes
    cancel NAME                                    the client asks for it
    until KIND [to ADDRESS]                        run until such a message has arrived
    for SECONDS                                    let time pass
    lose KIND (to|from) ADDRESS                    the next one is lost on that process's link
    hold KIND (to|from) ADDRESS SECONDS            the next one takes longer; later ones overtake it
    stop ADDRESS / continue ADDRESS                SIGSTOP and SIGCONT
    kill ADDRESS / start ADDRESS                   SIGKILL, and a new process
    drain ADDRESS                                  SIGTERM
    task NAME                                      what the database says of it
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

from agentos.core import messages as m
from agentos.core.jsontext import dump
from agentos.core.routes import kind_of
from agentos.simulation.faults import Armed, Faults
from agentos.simulation.links import Process
from agentos.simulation.outcome import Shape
from agentos.simulation.trace import Trace
from agentos.simulation.workload import Job
from agentos.simulation.world import Simulation

CLIENT = "client/c0"
FOREVER_S = 1e6
PATIENCE_S = 60.0


class Recorder(Trace):
    """Keeps lines without their times, and remembers what arrived."""

    def __init__(self) -> None:
        super().__init__(self._keep, short=True)
        self.lines: list[str] = []
        self.arrived: list[tuple[str, str]] = []

    def _keep(self, line: str) -> None:
        self.lines.append(line[11:])

    def took(self, now: float, process: Process, envelope: m.Envelope) -> None:
        assert isinstance(envelope.message, m.Message)
        self.arrived.append((kind_of(type(envelope.message)), process.address))
        super().took(now, process, envelope)

    def called(self, now: float, process: Process, message: m.Message) -> None:
        self.arrived.append((kind_of(type(message)), process.address))
        super().called(now, process, message)


class Scenario:
    """Carries commands out, one after the other."""

    def __init__(self) -> None:
        self._trace = Recorder()
        self._cluster("")

    def run(self, command: str) -> list[str]:
        """Carry one command out; returns the lines that came of it."""
        name, _, rest = command.partition(" ")
        done: Callable[[str], None] = getattr(self, f"_{name}")
        self._trace.lines.clear()
        done(rest)
        return list(self._trace.lines)

    def _cluster(self, options: str) -> None:
        sizes = {"gateways": 1, "regions": 1, "proxies": 2}
        sizes |= {key: int(value) for key, _, value in (o.partition("=") for o in options.split())}
        self._sim = Simulation(
            1,
            shape=Shape(clients=1, tasks=0, **sizes),
            faults=Faults.none(FOREVER_S),
            offers=[{"writer": 2}],
            trace=self._trace,
        )
        # Every message takes its usual time, so that a change elsewhere changes no order here.
        self._sim.chance = lambda: 0.5  # type: ignore[method-assign]
        self._for("3")
        self._trace.lines[:] = ["ok"]

    def _process(self, address: str) -> Process:
        return self._sim.network.processes[address]

    def _submit(self, rest: str) -> None:
        name, graph = rest.split()
        client = self._process(CLIENT)
        job = Job(name, 0.0, CLIENT, description(graph))
        client.machine.add(job, self._sim.now + client.offset)  # type: ignore[union-attr]
        self._sim.hosts.alarm(client)

    def _poison(self, rest: str) -> None:
        self._sim.poison.add(rest.split(maxsplit=1)[0])
        self._submit(rest)

    def _cancel(self, name: str) -> None:
        client = self._process(CLIENT)
        client.machine.cancel(name, self._sim.now + client.offset)  # type: ignore[union-attr]
        self._sim.hosts.alarm(client)

    def _until(self, rest: str) -> None:
        kind, _, address = rest.partition(" to ")
        self._trace.arrived.clear()
        end = self._sim.now + PATIENCE_S

        def arrived() -> bool:
            assert self._sim.now < end, f"{rest!r} has not happened within {PATIENCE_S} s"
            return any(k == kind and address in {"", to} for k, to in self._trace.arrived)

        self._sim.run_until(arrived)

    def _for(self, seconds: str) -> None:
        end = self._sim.now + float(seconds)
        self._sim.run_until(lambda: self._sim.now >= end)

    def _lose(self, rest: str) -> None:
        self._arm("drop", rest, 0.0)

    def _hold(self, rest: str) -> None:
        words, _, seconds = rest.rpartition(" ")
        self._arm("reorder", words, float(seconds))

    def _arm(self, fault: str, rest: str, for_s: float) -> None:
        kind, direction, address = rest.split()
        uplink = self._process(address).uplink
        assert uplink is not None
        lane = uplink.link.up if direction == "from" else uplink.link.down
        lane.armed.append(Armed(fault, kind, for_s, [True]))
        self._trace.lines.append("ok")

    def _stop(self, address: str) -> None:
        self._sim.hosts.pause(self._process(address), FOREVER_S)

    def _continue(self, address: str) -> None:
        process = self._process(address)
        self._sim.hosts.resume(process, process.incarnation)

    def _kill(self, address: str) -> None:
        self._sim.kill(self._process(address), FOREVER_S)

    def _start(self, address: str) -> None:
        self._sim.hosts.start(self._process(address), 0.02)

    def _drain(self, address: str) -> None:
        self._sim.hosts.drain(self._process(address), 0.5)

    def _task(self, name: str) -> None:
        database = self._sim.database
        task = next(t for t in database.list_tasks() if t.key == name)
        where = task.owner or task.region or "nobody"
        rows = database.get_progress_list(task.task_id)
        saved = ", ".join(f"{row.node_id} {row.epoch}" for row in rows) or "nothing"
        self._trace.lines.append(f"{task.state} at {task.epoch}, last with {where}; saved: {saved}")
        if task.error:
            self._trace.lines.append(f"error: {task.error}")


def description(graph: str) -> str:
    """A task description from `a`, `a->b` or `a*3`."""
    nodes = {}
    for before, word in itertools.pairwise(["", *graph.split("->")]):
        name, _, samples = word.partition("*")
        prompt = f"{name} after ${{{before.partition('*')[0]}}}" if before else name
        nodes[name] = {"agent": "writer", "prompt": prompt, "samples": int(samples or 1)}
    return dump({"nodes": nodes})


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The parts of a transcript: comments and commands, each command with its output."""
    for block in re.split(r"\n{2,}", text.strip()):
        head, dashes, body = block.partition("\n----")
        yield head, body.strip().splitlines() if dashes else []


def rewritten(text: str) -> str:
    """The transcript with the output that its commands have now."""
    scenario = Scenario()
    parts = []
    for head, _ in blocks(text):
        lines = head.splitlines()
        command = lines[-1]
        if command.startswith("#"):
            parts.append(head)
            continue
        parts.append("\n".join([head, "----", *scenario.run(command)]))
    return "\n\n".join(parts) + "\n"
