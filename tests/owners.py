"""One owner's walk of a graph, with the proxy and the store around it played by hand."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.calls import Context
from agentos.core.epoch import Epoch
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits
from agentos.core.taskrun import TaskRun
from agentos.core.timers import Timers

ME, REGION, OTHER = "proxy/r0/0", "region/r0", "proxy/r0/1"
E11, E12 = Epoch(1, 1), Epoch(1, 2)
DIAMOND = {
    "a": {"agent": "echo", "prompt": "start"},
    "b": {"agent": "echo", "prompt": "${a}", "samples": 2, "voters": 1},
    "c": {"agent": "echo", "prompt": "${a}"},
    "d": {"agent": "echo", "prompt": "${b} ${c}"},
}


class Owner:
    """A run with the proxy and the store around it played by hand."""

    def __init__(
        self,
        nodes: dict[str, Any],
        saved: list[m.SavedRow] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        text = json.dumps({"nodes": nodes})
        self.timers: Timers[tuple[int, str]] = Timers()
        context = Context(
            address=ME,
            region=REGION,
            limits=self.limits,
            timers=self.timers,
            run_here=lambda _: None,
            chance=lambda: 0.5,
        )
        run = m.Run(task_id=1, epoch=E12, task_description=text, saved=0)
        self.run = TaskRun(run, parse_graph(text, self.limits), saved or [], context)
        self.asked: dict[str, m.Call] = {}
        self.records: list[m.Record] = []
        self.sent: list[m.Send] = []
        self.take(self.run.begin(0.0))

    def take(self, sends: list[m.Send]) -> None:
        """Sort what came out."""
        self.sent += sends
        for send in sends:
            if isinstance(send.message, m.Place):
                assert send.to == REGION
                for row in send.message.rows:
                    self.asked[row] = msgspec.structs.replace(send.message.call, row=row)
            elif isinstance(send.message, m.Record):
                self.records.append(send.message)

    def answer(self, row: str, value: Any = None, /, **fields: Any) -> None:
        """Answer a call with a value, or with these fields of its result."""
        call = self.asked.pop(row)
        outcome = fields or {"value": json.dumps(value, ensure_ascii=False)}
        result = m.CallResult(
            task_id=1, epoch=E12, row=row, attempt=call.attempt, proxy=OTHER, **outcome
        )
        self.take(self.run.answered(result, 1.0))

    def commit(self, record: m.Record | None = None) -> None:
        """Confirm a write: the oldest, unless told."""
        record = record or self.records.pop(0)
        done = m.Recorded(
            task_id=1,
            epoch=E12,
            outcome="applied",
            nodes=tuple(row.node_id for row in record.rows),
            ended=record.end is not None,
            current=E12,
            state="running",
        )
        self.take(self.run.recorded(done, 1.0))

    def pass_time(self) -> None:
        """Let the next deadline come."""
        due = self.timers.next()
        assert due is not None
        for _, row in self.timers.pop_due(due):
            self.take(self.run.due(row, due))


def row(name: str, value: Any, **more: Any) -> m.SavedRow:
    """A saved row of an earlier owner."""
    return m.SavedRow(name, E11, json.dumps({"value": value, **more}))
