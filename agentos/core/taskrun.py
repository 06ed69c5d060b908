"""One owner's walk of one task's graph.

Persist, then send: whatever an answer leads to (the next question, the next node, the end) is
decided at once and held back until the store has confirmed every row that it rests on. A crash
at any point therefore leaves a database from which the next owner decides the same.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import msgspec

from agentos.core import jsontext
from agentos.core import messages as m
from agentos.core.calls import Calls, Context, Flight
from agentos.core.deliberation import Ask, Deliberation
from agentos.core.errors import GraphError
from agentos.core.graph import Graph, Walk
from agentos.core.prompts import PromptError
from agentos.core.rows import (
    Saved,
    answer_text,
    excerpt,
    load,
    node_of,
    node_text,
    pages,
    plain,
    response_text,
    split,
    surely_fits,
    too_large,
    usage_of,
    wire_size,
)
from agentos.core.timers import patience


class TaskRun:
    """The owner's side of one task, from its claim to its end.

    Args:
        run: the claim, with the description.
        graph: the description, parsed.
        rows: what earlier owners have saved.
        ctx: the proxy that carries it.

    Raises:
        GraphError, msgspec.ValidationError, ValueError: a saved row cannot be read.
    """

    def __init__(self, run: m.Run, graph: Graph, rows: Sequence[m.SavedRow], ctx: Context) -> None:
        self.task_id = run.task_id
        self.epoch = run.epoch
        self.over = False
        self.watchers: dict[str, bool] = {}
        self._graph = graph
        self._ctx = ctx
        self._nodes: dict[str, Deliberation] = {}
        self._values: dict[str, Any] = {"input": graph.input}
        self._usage = m.Usage()
        self._costs: dict[str, m.Usage] = {}
        self.calls = Calls(run, ctx, self._event)
        self._unsaved: dict[str, m.Row] = {}
        self._unsaved_of: defaultdict[str, int] = defaultdict(int)
        self._after: dict[str, list[Ask]] = {}
        self._end: m.End | None = None
        self.doubtful = False
        self._yielding = False
        self._repeats = 0
        self._saved: dict[str, list[tuple[int, str, Any]]] = {}
        for row in rows:
            self._load(row)
        done = [name for name in self._values if name != "input"]
        for name in done:
            self._saved.pop(name, None)
            self._costs.pop(name, None)
        self._walk = Walk(graph, done)
        self._ready: deque[str] = deque()
        self._open = len(graph.nodes) - len(done)

    def begin(self, now: float) -> list[m.Send]:
        """Start every node that is ready."""
        out = self._event("started", proxy=self._ctx.address)
        if not self._open:
            return out + self._save([], now)
        self._ready.extend(self._walk.ready())
        return out + self._start_ready(now)

    # -- what comes back -----------------------------------------------------------------------

    def answered(self, result: m.CallResult, now: float) -> list[m.Send]:
        """A call came back, with a value or an error; there is room for another."""
        flight = self.calls.answered(result)
        if flight is None:
            return self._start_ready(now)
        out = [*self.calls.elsewhere(flight, result.proxy), *self._answered(flight, result, now)]
        return out + self._start_ready(now) if self._ready else out

    def _answered(self, flight: Flight, result: m.CallResult, now: float) -> list[m.Send]:
        try:
            value = self._value(result)
        except GraphError as error:
            result = msgspec.structs.replace(
                result, value=None, error=f"unusable answer: {error}", retryable=True
            )
        if result.value is None:
            return self._failed(flight, result, now)
        self.calls.done(result.row)
        node, ask = flight.node, flight.ask
        usage = usage_of(result)
        self._costs[node] = self._costs[node] + usage if node in self._costs else usage
        self._usage += msgspec.structs.replace(usage, retries=0) if usage.retries else usage
        self._nodes[node].answer(ask.round, ask.slot, value)
        single = result if self._is_single(node) else None
        rows = [] if single else [m.Row(result.row, answer_text(result, usage))]
        out: list[m.Send] = []
        if self.watchers:
            event = "vote" if ask.slot.startswith("v") else "answer"
            text = excerpt(value, result.seconds)
            out += self._event(event, node, ask.round, ask.slot, result.proxy, text)
        return out + self._advance(node, rows, now, single)

    def peer_down(self, proxy: str, now: float) -> list[m.Send]:
        """A proxy is lost, and with it its calls; one that costs proxy after proxy has failed."""
        out, poisonous = self.calls.peer_down(proxy, now, wait=self.doubtful)
        for flight, result in poisonous:
            out += self._failed(flight, result, now) if self._end is None else []
        return out

    def recorded(self, answer: m.Recorded, now: float) -> list[m.Send]:
        """Rows are durable (by this owner's hand): let go what was held back for them."""
        out: list[m.Send] = []
        doubtful, self.doubtful, self._repeats = self.doubtful, False, 0
        saved = [(row_id, node_of(row_id)) for row_id in answer.nodes]
        for row_id, node in saved:
            if self._unsaved.pop(row_id, None) is not None:
                self._unsaved_of[node] -= 1
        if not self._unsaved and (self._end is None or answer.ended):
            self._ctx.timers.cancel((self.task_id, ""))
        if answer.ended and self._end is not None:
            self.over = True
            ended = m.Ended(task_id=self.task_id, epoch=self.epoch, state=self._end.state)
            finished = [name for name in self._after if self._nodes[name].done]
            return [*self._finished(finished), m.Send(self._ctx.region, ended)]
        held = list(self._after) if doubtful else [node for _, node in saved]
        for node in dict.fromkeys(held):
            out += self._release(node, now)
        out += self._start_ready(now)
        if not self._open and not self._unsaved and self._end is None:
            out += self._save([], now)
        return out

    def due(self, row: str, now: float) -> list[m.Send]:
        """A deadline of this run: a silent store (""), or a call that should have come back."""
        if not row:
            self._repeats += 1
            return self._save([], now)
        if self.doubtful:
            self._ctx.timers.set((self.task_id, row), now + self._ctx.limits.resend_s)
            return []
        return self.calls.due(row, now)

    def doubt(self, now: float) -> list[m.Send]:
        """Our loop stood still: start nothing until the store has confirmed the claim."""
        self.doubtful = True
        return self._save([], now)

    def give_back(self) -> None:
        """Start nothing more: the task is to be handed back when what is in flight is saved."""
        self._yielding = True

    @property
    def given_back(self) -> bool:
        """Whether nothing is in flight any more, after `give_back`."""
        if not self._yielding or self._end is not None:
            return False
        self.calls.drop_unplaced()
        return not self.calls and not self._unsaved

    def stop(self) -> list[m.Send]:
        """Give the task up: abort every call, start nothing more."""
        self.over = True
        self._ctx.timers.cancel((self.task_id, ""))
        return self.calls.abort()

    def watch(self, client: str, *, progress: bool) -> list[m.Send]:
        """Tell a client what happens from now on, and first how far the task has come."""
        new = client not in self.watchers
        self.watchers[client] = progress
        if not (new and progress):
            return []
        done = [n for n in self._graph.nodes if n in self._values and n not in self._nodes]
        sends = [*self._event("started", proxy=self._ctx.address), *self._finished(done)]
        return [send for send in sends if send.to == client]

    # -- nodes -----------------------------------------------------------------------------------

    def _finished(self, names: Sequence[str]) -> list[m.Send]:
        if not self.watchers:
            return []
        return [
            send
            for name in names
            for send in self._event("node", name, text=excerpt(self._values[name]))
        ]

    def _start_ready(self, now: float) -> list[m.Send]:
        """Start nodes while there is room for their calls: a wide graph goes through in slices."""
        out: list[m.Send] = []
        while self._ready and self._may_start and len(self.calls) < self._ctx.limits.calls_per_task:
            out += self._start(self._ready.popleft(), now)
        return out

    @property
    def _may_start(self) -> bool:
        return self._end is None and not self.doubtful and not self._yielding

    def _start(self, name: str, now: float) -> list[m.Send]:
        node = self._graph.nodes[name]
        try:
            prompt = node.prompt.render(self._values, self._ctx.limits.max_prompt_bytes)
        except PromptError as error:
            return self._fail(name, str(error), now)
        self._nodes[name] = deliberation = Deliberation(node, prompt)
        for round_, slot, value in self._saved.pop(name, []):
            deliberation.answer(round_, slot, value)
        return self._advance(name, [], now)

    def _advance(
        self, name: str, rows: list[m.Row], now: float, single: m.CallResult | None = None
    ) -> list[m.Send]:
        """Take a node as far as its answers reach; save, and hold back what follows."""
        deliberation = self._nodes[name]
        asks = deliberation.advance()
        if asks or deliberation.done:
            self._after[name] = asks
        if deliberation.done:
            return self._conclude(name, rows, now, single)
        return self._save(rows, now) if rows else self._release(name, now)

    def _conclude(
        self, name: str, rows: list[m.Row], now: float, single: m.CallResult | None = None
    ) -> list[m.Send]:
        """Save a node's result: with the answers to it that are not durable yet, or after them."""
        waiting = self._unsaved_of[name]
        ours = [r for r in self._unsaved.values() if node_of(r.node_id) == name] if waiting else []
        together = [*ours, *rows, m.Row(name, self._node_result(name, single))]
        if len(together) > 1 and len(pages(together, None, self._ctx.limits.page_bytes)) > 1:
            return self._save(rows, now)
        self._costs.pop(name, None)
        self._values[name] = self._nodes[name].value
        self._open -= 1
        return self._save(together, now)

    def _release(self, name: str, now: float) -> list[m.Send]:
        if self._unsaved_of[name] or not self._may_start or name not in self._after:
            return []
        deliberation = self._nodes[name]
        if deliberation.done and name not in self._values:
            return self._conclude(name, [], now)
        asks = self._after.pop(name)
        if not deliberation.done:
            most = self._ctx.limits.max_prompt_bytes
            if asks and (fault := too_large(asks[0], most)):  # those of one round are the same
                return self._fail(name, fault, now)
            return self.calls.ask(deliberation.node, asks, self._graph.priority, now)
        del self._nodes[name]
        out = self._finished([name])
        self._ready.extend(self._walk.finish(name))
        return out

    def _failed(self, flight: Flight, result: m.CallResult, now: float) -> list[m.Send]:
        """Repeat the call, or go on without this vote, or fail the node and with it the task."""
        node, ask, attempt = self._graph.nodes[flight.node], flight.ask, flight.call.attempt
        again = result.retryable and attempt < node.retries
        self._usage += msgspec.structs.replace(usage_of(result), retries=int(again))
        if again:
            self.calls.again(flight, result.retry_after_s, now)
            return self._event(
                "retry", flight.node, ask.round, ask.slot, result.proxy, result.error
            )
        self.calls.done(result.row)
        if ask.slot.startswith("v"):
            self._nodes[flight.node].void(ask.round, ask.slot)
            out = self._event("void", flight.node, ask.round, ask.slot, result.proxy, result.error)
            return out + self._advance(flight.node, [], now)
        tries = f"after {attempt + 1} attempts" if attempt else "at the first attempt"
        return self._fail(
            flight.node,
            f"call {result.row} to agent {node.agent!r} failed {tries}: {result.error}",
            now,
        )

    def _fail(self, name: str, reason: str, now: float) -> list[m.Send]:
        reason = plain(reason)
        error = f"node {name!r}: {reason}"
        response = self._response("failed", {"error": {"node": name, "reason": reason}})
        self._end = m.End("failed", response, error)
        return [*self.calls.abort(), *self._save([], now)]

    # -- the store -------------------------------------------------------------------------------

    def _save(self, rows: list[m.Row], now: float) -> list[m.Send]:
        """Write rows; with the end, or when the store was silent, everything not yet confirmed."""
        again = not rows
        for row in rows:
            if row.node_id not in self._unsaved:
                self._unsaved[row.node_id] = row
                self._unsaved_of[node_of(row.node_id)] += 1
        if again or not self._open:
            rows = list(self._unsaved.values())
        ending = not self._open and self._end is None
        end = self._success() if ending else self._end
        parts = pages(rows, end, self._ctx.limits.page_bytes)
        if ending and len(parts) == 1:
            self._end = end
        elif ending:  # all in one record, or the end alone once the rows are confirmed
            parts = pages(rows, None, self._ctx.limits.page_bytes)
        wait_s = patience(self._ctx.limits.resend_s, self._repeats)
        self._ctx.timers.set((self.task_id, ""), now + wait_s)
        return [
            m.Send(
                m.STORE,
                m.Record(task_id=self.task_id, epoch=self.epoch, rows=part, end=last),
            )
            for part, last in parts
        ]

    def _success(self) -> m.End:
        output = self._graph.result(self._values)
        response = self._response("succeeded", {"output": output})
        most = self._ctx.limits.page_bytes
        if surely_fits(len(response) + 1, most) or (size := wire_size(response)) <= most:
            return m.End("succeeded", response)
        reason = f"the output takes {size} bytes, more than {most}: set `output` to one node"
        return m.End("failed", self._response("failed", {"error": {"reason": reason}}), reason)

    def _load(self, row: m.SavedRow) -> None:
        node, round_, slot = split(row.node_id)
        if node not in self._graph.nodes:
            return  # the description was replaced since, and has no such node any more
        saved: Saved = load(row, self._ctx.limits)
        if slot:
            self._saved.setdefault(node, []).append((round_, slot, saved.value))
            self._costs[node] = self._costs.get(node, m.Usage()) + saved.usage
            self._usage += saved.usage
        else:
            self._values[node] = saved.value
            if self._is_single(node):
                self._usage += saved.usage

    def _is_single(self, name: str) -> bool:
        """A node of one call: its answer is its result, and one row holds both."""
        node = self._graph.nodes[name]
        return node.rounds == 1 and node.samples == 1

    def _node_result(self, name: str, single: m.CallResult | None) -> m.Json:
        usage = self._costs.get(name, m.Usage())
        if single is not None:
            return answer_text(single, usage)
        deliberation = self._nodes[name]
        return node_text(deliberation.value, deliberation.votes, usage)

    def _value(self, result: m.CallResult) -> Any:
        if result.value is None:
            return None
        return jsontext.parse(
            result.value, max_bytes=self._ctx.limits.max_result_bytes, where=result.row
        )

    def _response(self, state: str, outcome: dict[str, Any]) -> m.Json:
        return response_text(self.task_id, state, outcome, self._usage)

    def _event(
        self,
        event: str,
        node: str = "",
        round_: int = 0,
        slot: str = "",
        proxy: str = "",
        text: str = "",
    ) -> list[m.Send]:
        if not self.watchers:
            return []
        message = m.Event(
            task_id=self.task_id,
            epoch=self.epoch,
            event=event,
            node=node,
            round=round_,
            slot=slot,
            proxy=proxy,
            text=text,
        )
        return [m.Send(client, message) for client, all_ in self.watchers.items() if all_]
