"""One owner's walk of one task's graph.

Persist, then send: whatever an answer leads to (the next question, the next node, the end) is
decided at once and held back until the store has confirmed every row that it rests on. A crash
at any point therefore leaves a database from which the next owner decides the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from agentos.core import jsontext
from agentos.core import messages as m
from agentos.core.audience import Audience
from agentos.core.calls import Calls, Context, Flight
from agentos.core.deliberation import Deliberation, NodeRun
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
        watchers: who is to hear of it; see `Audience`.

    Raises:
        GraphError, msgspec.ValidationError, ValueError: a saved row cannot be read.
    """

    def __init__(
        self,
        run: m.Run,
        graph: Graph,
        rows: Sequence[m.SavedRow],
        ctx: Context,
        watchers: dict[str, bool] | None = None,
    ) -> None:
        self.task_id = run.task_id
        self.epoch = run.epoch
        self.over = False
        self._audience = Audience(run, {} if watchers is None else watchers)
        self._graph = graph
        self._ctx = ctx
        self._nodes: dict[str, NodeRun] = {}
        self._values: dict[str, Any] = {"input": graph.input}
        self._usage = m.Usage()
        self.calls = Calls(run, ctx, self._audience)
        self._unsaved: dict[str, m.Row] = {}
        self._end: m.End | None = None
        self.doubtful = False
        self._yielding = False
        self._repeats = 0
        self._saved: dict[str, list[tuple[int, str, Saved]]] = {}
        for row in rows:
            self._load(row)
        done = [name for name in self._values if name != "input"]
        for name in done:
            self._saved.pop(name, None)
        self._walk = Walk(graph, done)
        self._ready: deque[str] = deque()
        self._queued: deque[NodeRun] = deque()
        self._open = len(graph.nodes) - len(done)

    @property
    def watchers(self) -> dict[str, bool]:
        """Who hears of it, and whether of its progress."""
        return self._audience.watchers

    def begin(self, now: float) -> list[m.Send]:
        """Start every node that is ready."""
        out = self._audience.event("started", proxy=self._ctx.address)
        if not self._open:
            return out + self._save_all(now)
        self._ready.extend(self._walk.ready())
        return out + self._start_ready(now)

    # -- what comes back -----------------------------------------------------------------------

    def answered(self, result: m.CallResult, now: float) -> list[m.Send]:
        """A call came back, with a value or an error; there is room for another."""
        flight = self.calls.answered(result)
        out = [] if flight is None else self._answered(flight, result, now)
        return out + self._start_ready(now) if self._ready or self._queued else out

    def _answered(self, flight: Flight, result: m.CallResult, now: float) -> list[m.Send]:
        out = self.calls.elsewhere(flight, result.proxy)
        if result.value is None:
            return out + self._failed(flight, result, now)
        most = self._ctx.limits.max_result_bytes
        try:
            value = jsontext.parse(result.value, max_bytes=most, where=result.row)
        except GraphError as error:
            unusable = msgspec.structs.replace(
                result, value=None, error=f"unusable answer: {error}", retryable=True
            )
            return out + self._failed(flight, unusable, now)
        self.calls.done(result.row)
        name, ask = flight.node, flight.ask
        node = self._nodes[name]
        usage = usage_of(result)
        node.usage += usage
        self._usage += msgspec.structs.replace(usage, retries=0) if usage.retries else usage
        node.deliberation.answer(ask.round, ask.slot, value)
        if self.watchers:
            event = "vote" if ask.slot.startswith("v") else "answer"
            text = excerpt(value, result.seconds)
            out += self._audience.event(event, name, ask.round, ask.slot, result.proxy, text)
        # A node's only answer is its result: one row holds both.
        row_id = name if node.deliberation.node.lone else result.row
        return out + self._advance(node, [m.Row(row_id, answer_text(result, usage))], now)

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
        confirmed: dict[str, NodeRun] = {}
        for row_id in answer.nodes:
            name = node_of(row_id)
            if (node := self._nodes.get(name)) is not None:
                confirmed[name] = node
                if self._unsaved.pop(row_id, None) is not None:
                    node.unsaved -= 1
        if not self._unsaved and (self._end is None or answer.ended):
            self._ctx.timers.cancel((self.task_id, ""))
        if answer.ended and self._end is not None:
            self.over = True
            ended = m.Ended(task_id=self.task_id, epoch=self.epoch, state=self._end.state)
            finished = [name for name, run in self._nodes.items() if run.deliberation.done]
            return [*self._finished(finished), m.Send(self._ctx.region, ended)]
        for node in list(self._nodes.values()) if doubtful else confirmed.values():
            out += self._release(node, now)
        out += self._start_ready(now)
        if not self._open and not self._unsaved and self._end is None:
            out += self._save_all(now)
        return out

    def due(self, row: str, now: float) -> list[m.Send]:
        """A deadline of this run: a silent store (""), or a call that should have come back."""
        if not row:
            self._repeats += 1
            return self._save_all(now)
        if self.doubtful:
            self._ctx.timers.set((self.task_id, row), now + self._ctx.limits.resend_s)
            return []
        return self.calls.due(row, now)

    def doubt(self, now: float) -> list[m.Send]:
        """Our loop stood still: start nothing until the store has confirmed the claim."""
        self.doubtful = True
        return self._save_all(now)

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
        sends = [*self._audience.event("started", proxy=self._ctx.address), *self._finished(done)]
        return [send for send in sends if send.to == client]

    # -- nodes -----------------------------------------------------------------------------------

    def _finished(self, names: Sequence[str]) -> list[m.Send]:
        if not self.watchers:
            return []
        return [
            send
            for name in names
            for send in self._audience.event("node", name, text=excerpt(self._values[name]))
        ]

    def _start_ready(self, now: float) -> list[m.Send]:
        """Ask and start while there is room for more calls: a wide graph goes through in slices."""
        out: list[m.Send] = []
        while (self._queued or self._ready) and self._may_start and self._has_room:
            if self._queued:  # first what is under way
                node = self._queued.popleft()
                node.queued = False
                out += self._release(node, now)
            else:
                out += self._start(self._ready.popleft(), now)
        return out

    @property
    def _has_room(self) -> bool:
        return len(self.calls) < self._ctx.limits.calls_per_task

    @property
    def _may_start(self) -> bool:
        return self._end is None and not self.doubtful and not self._yielding

    def _start(self, name: str, now: float) -> list[m.Send]:
        node = self._graph.nodes[name]
        try:
            prompt = node.prompt.render(self._values, self._ctx.limits.max_prompt_bytes)
        except PromptError as error:
            return self._fail(name, str(error), now)
        self._nodes[name] = run = NodeRun(Deliberation(node, prompt))
        for round_, slot, saved in self._saved.pop(name, ()):
            run.deliberation.answer(round_, slot, saved.value)
            run.usage += saved.usage
        return self._advance(run, [], now)

    def _advance(self, node: NodeRun, rows: list[m.Row], now: float) -> list[m.Send]:
        """Take a node as far as its answers reach; save, and hold back what follows."""
        asks = node.deliberation.advance()
        if node.deliberation.done:
            node.held = []
            return self._conclude(node, rows, now)
        node.held = asks or node.held
        return self._save(node, rows, now) if rows else self._release(node, now)

    def _conclude(self, node: NodeRun, rows: list[m.Row], now: float) -> list[m.Send]:
        """Save a node's result: with the answers to it that are not durable yet, or after them."""
        name, value = node.deliberation.node.name, node.deliberation.value
        if not (rows and rows[-1].node_id == name):
            ours = [r for r in self._unsaved.values() if node_of(r.node_id) == name]
            result = node_text(value, node.deliberation.votes, node.usage)
            together = [*ours, *rows, m.Row(name, result)]
            if len(pages(together, None, self._ctx.limits.page_bytes)) > 1:
                return self._save(node, rows, now) if rows else []
            rows = together
        self._values[name] = value
        self._open -= 1
        return self._save(node, rows, now)

    def _release(self, node: NodeRun, now: float) -> list[m.Send]:
        """Let go what a node's answers lead to, if they are durable."""
        asks = node.held
        if asks is None or node.unsaved or not self._may_start:
            return []
        deliberation = node.deliberation
        name = deliberation.node.name
        if deliberation.done:
            if name not in self._values:
                return self._conclude(node, [], now)
            del self._nodes[name]
            self._ready.extend(self._walk.finish(name))
            return self._finished([name])
        if not self._has_room:
            if not node.queued:
                node.queued = True
                self._queued.append(node)
            return []
        node.held = None
        if fault := too_large(asks[0], self._ctx.limits.max_prompt_bytes):  # one round's are alike
            return self._fail(name, fault, now)
        return self.calls.ask(deliberation.node, asks, self._graph.priority, now)

    def _failed(self, flight: Flight, result: m.CallResult, now: float) -> list[m.Send]:
        """Repeat the call, or go on without this vote, or fail the node and with it the task."""
        node, ask, attempt = self._graph.nodes[flight.node], flight.ask, flight.call.attempt
        again = result.retryable and attempt < node.retries
        self._usage += msgspec.structs.replace(usage_of(result), retries=int(again))
        if again:
            self.calls.again(flight, result.retry_after_s, now)
            return self._audience.event(
                "retry", flight.node, ask.round, ask.slot, result.proxy, result.error
            )
        self.calls.done(result.row)
        if ask.slot.startswith("v"):
            run = self._nodes[flight.node]
            run.deliberation.answer(ask.round, ask.slot, None)
            out = self._audience.event(
                "void", flight.node, ask.round, ask.slot, result.proxy, result.error
            )
            # Saved as well: the next owner must not decide by a vote that this one did without.
            void = msgspec.structs.replace(result, value="null")
            row = m.Row(result.row, answer_text(void, usage_of(result)))
            return out + self._advance(run, [row], now)
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
        return [*self.calls.abort(), *self._save_all(now)]

    # -- the store -------------------------------------------------------------------------------

    def _save(self, node: NodeRun, rows: list[m.Row], now: float) -> list[m.Send]:
        """Write rows of a node; if it was the last one, all that is not confirmed, and the end."""
        for row in rows:
            if row.node_id not in self._unsaved:
                self._unsaved[row.node_id] = row
                node.unsaved += 1
        return self._write(rows, now) if self._open else self._save_all(now)

    def _save_all(self, now: float) -> list[m.Send]:
        """Write all that is not confirmed: with the end, or when the store was silent."""
        return self._write(list(self._unsaved.values()), now)

    def _write(self, rows: list[m.Row], now: float) -> list[m.Send]:
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
            self._saved.setdefault(node, []).append((round_, slot, saved))
            self._usage += saved.usage
        else:
            self._values[node] = saved.value
            if self._graph.nodes[node].lone:
                self._usage += saved.usage

    def _response(self, state: str, outcome: dict[str, Any]) -> m.Json:
        return response_text(self.task_id, state, outcome, self._usage)
