"""A cluster that is checked at every message, graphs of every form, and what must come of them."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.graph import Graph, Node, parse_graph
from agentos.core.limits import Limits
from agentos.core.ports import SaveOutcome
from agentos.storage.memory import MemoryDatabase
from tests.clusters import Cluster
from tests.harness import Reply, Script

LIMITS = Limits()
OFFERS = {"echo": 2, "other": 1}


@st.composite
def descriptions(draw: st.DrawFn) -> str:
    """Any graph of up to seven nodes, in an order that has nothing to do with its edges."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 7)))]
    nodes: dict[str, Any] = {}
    for i, name in enumerate(names):
        earlier = st.lists(st.sampled_from(names[:i]), max_size=3) if i else st.just([])
        references = " ".join(f"${{{other}}}" for other in draw(earlier))
        samples = draw(st.integers(1, 3))
        nodes[name] = {
            "agent": draw(st.sampled_from(sorted(OFFERS))),
            "prompt": f"{name} ${{input.x}} {references}",
            "needs": draw(earlier),
            "rounds": draw(st.integers(1, 2)),
            "samples": samples,
            "voters": draw(st.integers(0, 2)) if samples > 1 else 0,
            "retries": 2,
            **draw(st.sampled_from([{}, {"schema": {"type": "object"}}])),
        }
    order = draw(st.permutations(names))
    top = {"output": draw(st.sampled_from(names))} if draw(st.booleans()) else {}
    return json.dumps({"input": {"x": [1]}, "nodes": {n: nodes[n] for n in order}, **top})


def answer(row: str) -> Any:
    """What the agents answer: decided by the row alone, and often the same for several samples."""
    chance = zlib.crc32(row.encode())
    if row.rpartition("/")[2].startswith("v"):
        return [{"choice": chance % 3}, {"choice": "0"}, "the first"][chance // 7 % 3]
    return [{"text": row.partition("/")[0]}, "${n0} stays text", chance % 2, None][chance % 4]


def echo(call: m.Call) -> Reply:
    """Answer after a moment that depends on the call."""
    return Reply(answer(call.row), after_s=zlib.crc32(call.row.encode()) % 5 * 0.05)


def value_of(node: Node) -> Any:
    """A node's value by the rules of the manual, worked out the slow way."""
    best: Any = None
    for round_ in range(1, node.rounds + 1):
        values = [answer(m.call_row(node.name, round_, f"s{i}")) for i in range(node.samples)]
        votes = [json.dumps(value, sort_keys=True) for value in values]
        scores = [votes.count(vote) for vote in votes]
        if node.voters:
            ballots = [answer(m.call_row(node.name, round_, f"v{i}")) for i in range(node.voters)]
            choices = [b["choice"] for b in ballots if isinstance(b, dict)]
            scores = [choices.count(i) for i in range(node.samples)]
        best = values[scores.index(max(scores))]
    return best


def rows_of(graph: Graph) -> set[str]:
    """Every row that a finished task has."""
    rows = set(graph.nodes)
    for node in graph.nodes.values():
        if node.samples > 1 or node.rounds > 1:
            slots = [f"s{i}" for i in range(node.samples)] + [f"v{i}" for i in range(node.voters)]
            rows |= {
                m.call_row(node.name, round_ + 1, slot)
                for round_ in range(node.rounds)
                for slot in slots
            }
    return rows


class WatchedDatabase(MemoryDatabase):
    """A database that counts how often each row was written."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0.0)
        self.writes: Counter[tuple[int, str]] = Counter()

    def record(
        self,
        task_id: int,
        epoch: Epoch,
        rows: Sequence[m.Row],
        end: m.End | None = None,
        *,
        writer: str = "",
    ) -> SaveOutcome:
        before = {row.node_id: self.get_progress(task_id, row.node_id) for row in rows}
        outcome = super().record(task_id, epoch, rows, end, writer=writer)
        for row_id, old in before.items():
            if self.get_progress(task_id, row_id) != old:
                self.writes[task_id, row_id] += 1
        return outcome


class Watched(Cluster):
    """A cluster that is checked at every message."""

    database: WatchedDatabase

    def __init__(self, script: Script = echo, **options: Any) -> None:
        super().__init__(
            script, offers=OFFERS, limits=LIMITS, database=WatchedDatabase(), **options
        )
        self._seen = 0
        self._stale: set[tuple[str, int, Epoch]] = set()
        self.checks += [self._persisted_first, self._stale_stops]
        self.run_for(2.0)

    def start(self, *texts: str) -> list[int]:
        """Submit these."""
        return [self.submit(text) for text in texts]

    def finish(self, *tasks: int, max_s: float = 120.0) -> None:
        """Run until all of these have ended, and a little longer."""
        self.run_until(lambda: self.ended(*tasks), max_s)
        self.run_for(0.5)

    def check_succeeded(self, task_id: int) -> None:
        """It succeeded with the right output, and each of its rows was written exactly once."""
        text = self.database.get_task_description(task_id)
        assert text is not None
        graph = parse_graph(text, LIMITS)
        task = self.task(task_id)
        assert (task.state, task.error) == ("succeeded", "")
        assert task.response is not None
        values = {name: value_of(node) for name, node in graph.nodes.items()}
        assert json.loads(task.response)["output"] == graph.result(values)
        assert {row.node_id for row in self.database.get_progress_list(task_id)} == rows_of(graph)
        written = {row: n for (of, row), n in self.database.writes.items() if of == task_id}
        assert written == dict.fromkeys(rows_of(graph), 1)

    def invoked(self, task_id: int) -> list[tuple[float, m.Call]]:
        """The calls that reached an agent, and when."""
        return [
            (at, e.message.call)
            for at, e in self.sent(m.Invoke)
            if isinstance(e.message, m.Invoke) and e.message.call.task_id == task_id
        ]

    def _persisted_first(self, envelope: m.Envelope) -> None:
        """No call is sent before everything that its question rests on is committed."""
        q = envelope.message
        if not isinstance(q, m.Invoke):
            return
        text = self.database.get_task_description(q.call.task_id)
        assert text is not None
        graph = parse_graph(text, LIMITS)
        name, round_, slot = q.call.row.split("/")
        node = graph.nodes[name]
        needed = set(node.dependencies)
        samples = [f"s{i}" for i in range(node.samples)]
        if slot.startswith("v"):
            needed |= {m.call_row(name, int(round_), s) for s in samples}
        if int(round_) > 1:
            needed |= {m.call_row(name, int(round_) - 1, s) for s in samples}
        for row in needed:
            assert self.database.get_progress(q.call.task_id, row) is not None, (q.call.row, row)

    def _stale_stops(self, envelope: m.Envelope) -> None:
        """An owner that was told that it is stale starts no call under that epoch any more."""
        for _, e in self.log[self._seen :]:
            if isinstance(e.message, m.Recorded) and e.message.outcome == "stale":
                self._stale.add((e.to, e.message.task_id, e.message.epoch))
        self._seen = len(self.log)
        if isinstance(envelope.message, m.Invoke | m.Place | m.Call):
            call = envelope.message.call if not isinstance(envelope.message, m.Call) else None
            if call is not None and call.owner == envelope.sender:
                assert (envelope.sender, call.task_id, call.epoch) not in self._stale
