"""One owner's walk of one task's graph.

Persist, then send: whatever an answer leads to (the next question, the next node, the end) is
decided at once and held back until the store has confirmed every row that it rests on. A crash
at any point therefore leaves a database from which the next owner decides the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentos.core import jsontext
from agentos.core import messages as m
from agentos.core.deliberation import Ask, Deliberation
from agentos.core.errors import GraphError
from agentos.core.graph import Graph, Walk
from agentos.core.limits import Limits
from agentos.core.prompts import PromptError
from agentos.core.timers import Timers

TimerKey = tuple[int, str]
"""A task's id, and a call's row; "" for the task's unconfirmed writes."""

PLACED_SLACK_S = 10.0
EXCERPT = 160


class Flight(msgspec.Struct):
    """One call that is on its way: to be placed, placed at `proxy`, or waiting to be repeated."""

    call: m.Call
    ask: Ask
    node: str
    proxy: str = ""


class Context(msgspec.Struct, frozen=True):
    """What a run needs of the proxy that carries it."""

    address: str
    region: str
    limits: Limits
    timers: Timers[TimerKey]
    has_room: Callable[[str], bool]
    """Whether a call to this agent would start at once at home."""
    chance: Callable[[], float]
    """A float in [0, 1), for jitter."""


class TaskRun:
    """The owner's side of one task, from its claim to its end.

    Args:
        run: the claim, with the description.
        graph: the description, parsed.
        rows: what earlier owners have saved.
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
        self._flights: dict[str, Flight] = {}
        self._unsaved: dict[str, m.Row] = {}
        self._unsaved_of: Counter[str] = Counter()
        self._after: dict[str, list[Ask]] = {}
        self._end: m.End | None = None
        self._saved: dict[str, list[tuple[int, str, Any]]] = {}
        for row in rows:
            self._load(row)
        done = [name for name in self._values if name != "input"]
        for name in done:
            self._saved.pop(name, None)
            self._costs.pop(name, None)
        self._walk = Walk(graph, done)
        self._open = len(graph.nodes) - len(done)

    def begin(self, now: float) -> list[m.Send]:
        """Start every node that is ready."""
        out = self._event("started", proxy=self._ctx.address)
        if not self._open:
            return out + self._save([], now)
        for name in self._walk.ready():
            out += self._start(name, now)
        return out

    # -- what comes back -----------------------------------------------------------------------

    def answered(self, result: m.CallResult, now: float) -> list[m.Send]:
        """A call came back, with a value or an error."""
        flight = self._flights.get(result.row)
        if flight is None or flight.call.attempt != result.attempt or self._end is not None:
            return []
        try:
            value = self._value(result)
        except GraphError as error:
            result = msgspec.structs.replace(
                result, value=None, error=f"unusable answer: {error}", retryable=True
            )
        if result.value is None:
            return self._failed(flight, result, now)
        self._forget(result.row)
        node, ask = flight.node, flight.ask
        usage = msgspec.structs.replace(result.usage, calls=1, retries=result.attempt)
        self._costs[node] = self._costs.get(node, m.Usage()) + usage
        self._usage += msgspec.structs.replace(usage, retries=0)
        self._nodes[node].answer(ask.round, ask.slot, value)
        rows = [] if self._is_single(node) else [m.Row(result.row, _saved(result, usage))]
        event = "vote" if ask.slot.startswith("v") else "answer"
        out = self._event(
            event, node, ask.round, ask.slot, result.proxy, _excerpt(value, result.seconds)
        )
        return out + self._advance(node, rows, now, result)

    def recorded(self, answer: m.Recorded, now: float) -> list[m.Send]:
        """Rows are durable (by this owner's hand): let go what was held back for them."""
        out: list[m.Send] = []
        for row_id in answer.nodes:
            row = self._unsaved.pop(row_id, None)
            if row is not None:
                self._unsaved_of[_node_of(row_id)] -= 1
        if not self._unsaved and (self._end is None or answer.ended):
            self._ctx.timers.cancel((self.task_id, ""))
        if answer.ended and self._end is not None:
            self.over = True
            ended = m.Ended(
                task_id=self.task_id,
                epoch=self.epoch,
                state=self._end.state,
                response=self._end.response,
                error=self._end.error,
            )
            return [m.Send(self._ctx.region, ended)]
        for node in dict.fromkeys(_node_of(row_id) for row_id in answer.nodes):
            out += self._release(node, now)
        if not self._open and not self._unsaved and self._end is None:
            out += self._save([], now)
        return out

    def placed(self, answer: m.Placed, now: float) -> list[m.Send]:
        """The region found a place: the call runs there, or waits there."""
        flight = self._flights.get(answer.row)
        if flight is None or flight.call.attempt != answer.attempt:
            return []
        return self._at(flight, answer.proxy, now)

    def refused(self, answer: m.CallRefused, now: float) -> list[m.Send]:
        """There is no place for the call now; ask again later. Nothing ran, so nothing is spent."""
        flight = self._flights.get(answer.row)
        if flight is not None and flight.call.attempt == answer.attempt:
            flight.proxy = ""
            self._later(answer.row, now, answer.retry_after_s)
        return []

    def peer_down(self, proxy: str, now: float) -> list[m.Send]:
        """Calls that were placed at this proxy need another place."""
        out: list[m.Send] = []
        for row, flight in list(self._flights.items()):
            if flight.proxy == proxy:
                flight.proxy = ""
                out += self._event("lost", flight.node, flight.ask.round, flight.ask.slot, proxy)
                out += self._place([row], now)
        return out

    def due(self, row: str, now: float) -> list[m.Send]:
        """A deadline of this run: a silent store (""), or a call that should have come back."""
        if row == "":
            return self._save([], now)
        flight = self._flights.get(row)
        if flight is None:
            return []
        if not flight.proxy:
            return self._place([row], now)
        # The answer may be lost, or the call: the executor knows which, and a call that it still
        # has is not started twice.
        return [*self._at(flight, flight.proxy, now), m.Send(flight.proxy, flight.call)]

    def stop(self) -> list[m.Send]:
        """Give the task up: abort every call, start nothing more."""
        self.over = True
        self._ctx.timers.cancel((self.task_id, ""))
        return self._abort_flights()

    # -- nodes -----------------------------------------------------------------------------------

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
        if deliberation.done:
            rows.append(m.Row(name, self._node_result(name, single)))
            self._values[name] = deliberation.value
            self._open -= 1
        if asks or deliberation.done:
            self._after[name] = asks
        if rows:
            return self._save(rows, now)
        return self._release(name, now)

    def _release(self, name: str, now: float) -> list[m.Send]:
        if self._unsaved_of[name] or self._end is not None or name not in self._after:
            return []
        asks = self._after.pop(name)
        deliberation = self._nodes[name]
        if not deliberation.done:
            return self._ask(name, asks, now)
        del self._nodes[name]
        out = self._event("node", name, text=_excerpt(self._values[name]))
        for ready in self._walk.finish(name):
            out += self._start(ready, now)
        return out

    def _ask(self, name: str, asks: list[Ask], now: float) -> list[m.Send]:
        node = self._graph.nodes[name]
        rows = []
        for ask in asks:
            call = m.Call(
                task_id=self.task_id,
                epoch=self.epoch,
                row=m.call_row(name, ask.round, ask.slot),
                owner=self._ctx.address,
                agent=ask.agent,
                prompt=ask.prompt,
                timeout_s=node.timeout_s,
                schema=None if ask.schema is None else jsontext.dump(ask.schema),
                priority=self._graph.priority,
            )
            self._flights[call.row] = Flight(call, ask, name)
            rows.append(call.row)
        return self._place(rows, now)

    def _failed(self, flight: Flight, result: m.CallResult, now: float) -> list[m.Send]:
        """Repeat the call, or go on without this vote, or fail the node and with it the task."""
        node, ask, attempt = self._graph.nodes[flight.node], flight.ask, flight.call.attempt
        again = result.retryable and attempt < node.retries
        self._usage += msgspec.structs.replace(result.usage, calls=1, retries=int(again))
        if again:
            flight.call = msgspec.structs.replace(flight.call, attempt=attempt + 1)
            flight.proxy = ""
            self._later(result.row, now, self._backoff(attempt, result.retry_after_s))
            return self._event(
                "retry", flight.node, ask.round, ask.slot, result.proxy, result.error
            )
        self._forget(result.row)
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
        error = f"node {name!r}: {reason}"
        response = self._response("failed", {"error": {"node": name, "reason": reason}})
        self._end = m.End("failed", response, error)
        return [*self._abort_flights(), *self._save([], now)]

    # -- calls -----------------------------------------------------------------------------------

    def _place(self, rows: list[str], now: float) -> list[m.Send]:
        """One call with room at home runs here; else the region finds places, and spreads them.

        Work starts where it is and spills over when there is no room, as in Ray's bottom-up
        scheduler (Moritz et al., OSDI 2018).
        """
        first = self._flights[rows[0]].call
        if len(rows) == 1 and self._ctx.has_room(first.agent):
            flight = self._flights[rows[0]]
            return [*self._at(flight, self._ctx.address, now), m.Send(self._ctx.address, first)]
        for row in rows:
            self._ctx.timers.set((self.task_id, row), now + self._ctx.limits.resend_s)
        return [m.Send(self._ctx.region, m.Place(call=first, rows=tuple(rows)))]

    def _at(self, flight: Flight, proxy: str, now: float) -> list[m.Send]:
        new = flight.proxy != proxy
        flight.proxy = proxy
        patience = 2 * flight.call.timeout_s + PLACED_SLACK_S
        self._ctx.timers.set((self.task_id, flight.call.row), now + patience)
        ask = flight.ask
        return self._event("call", flight.node, ask.round, ask.slot, proxy) if new else []

    def _later(self, row: str, now: float, delay_s: float) -> None:
        self._ctx.timers.set((self.task_id, row), now + delay_s)

    def _backoff(self, attempt: int, retry_after_s: float | None) -> float:
        """Exponential with full jitter (AWS Architecture Blog, 2015), never before Retry-After."""
        limits = self._ctx.limits
        most = min(limits.retry_max_s, limits.retry_min_s * 2.0 ** min(attempt, 30))
        return max(retry_after_s or 0.0, limits.retry_min_s / 2 + self._ctx.chance() * most)

    def _forget(self, row: str) -> None:
        self._flights.pop(row, None)
        self._ctx.timers.cancel((self.task_id, row))

    def _abort_flights(self) -> list[m.Send]:
        proxies = dict.fromkeys(f.proxy for f in self._flights.values() if f.proxy)
        for row in list(self._flights):
            self._forget(row)
        abort = m.AbortCalls(task_id=self.task_id, epoch=self.epoch)
        return [m.Send(proxy, abort) for proxy in proxies]

    # -- the store -------------------------------------------------------------------------------

    def _save(self, rows: list[m.Row], now: float) -> list[m.Send]:
        """Write rows; with the end, or when the store was silent, everything not yet confirmed."""
        again = not rows
        for row in rows:
            self._unsaved[row.node_id] = row
            self._unsaved_of[_node_of(row.node_id)] += 1
        if again or not self._open:
            rows = list(self._unsaved.values())
        page = self._ctx.limits.page_bytes
        if not self._open and self._end is None and sum(len(r.result) for r in rows) <= page:
            self._end = self._success()
        self._ctx.timers.set((self.task_id, ""), now + self._ctx.limits.resend_s)
        return [
            m.Send(
                m.STORE,
                m.Record(task_id=self.task_id, epoch=self.epoch, rows=rows_, end=end),
            )
            for rows_, end in _pages(rows, self._end, page)
        ]

    def _success(self) -> m.End:
        output = self._graph.result(self._values)
        response = self._response("succeeded", {"output": output})
        most = self._ctx.limits.page_bytes
        if len(response) <= most:
            return m.End("succeeded", response)
        reason = f"the output takes {len(response)} characters, more than {most}: set `output`"
        return m.End("failed", self._response("failed", {"error": {"reason": reason}}), reason)

    def _load(self, row: m.SavedRow) -> None:
        saved = msgspec.json.decode(row.result)
        usage = msgspec.convert(saved.get("usage", {}), m.Usage)
        node, _, place = row.node_id.partition("/")
        if place:
            round_, _, slot = place.partition("/")
            self._saved.setdefault(node, []).append((int(round_), slot, saved["value"]))
            self._costs[node] = self._costs.get(node, m.Usage()) + usage
            self._usage += usage
        else:
            self._values[node] = saved["value"]
            if self._is_single(node):
                self._usage += usage

    def _is_single(self, name: str) -> bool:
        """A node of one call: its answer is its result, and one row holds both."""
        node = self._graph.nodes[name]
        return node.rounds == 1 and node.samples == 1

    def _node_result(self, name: str, single: m.CallResult | None) -> m.Json:
        usage = self._costs.pop(name, m.Usage())
        if single is not None and self._is_single(name):
            return _saved(single, usage)
        deliberation = self._nodes[name]
        return jsontext.dump(
            {
                "value": deliberation.value,
                "votes": deliberation.votes,
                "usage": msgspec.to_builtins(usage),
            }
        )

    def _value(self, result: m.CallResult) -> Any:
        if result.value is None:
            return None
        return jsontext.parse(
            result.value, max_bytes=self._ctx.limits.max_result_bytes, where=result.row
        )

    def _response(self, state: str, outcome: dict[str, Any]) -> m.Json:
        return jsontext.dump(
            {
                "task_id": self.task_id,
                "state": state,
                **outcome,
                "usage": msgspec.to_builtins(self._usage),
            }
        )

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


def _node_of(row_id: str) -> str:
    return row_id.partition("/")[0]


def _pages(
    rows: Sequence[m.Row], end: m.End | None, most: int
) -> list[tuple[tuple[m.Row, ...], m.End | None]]:
    """Records that each fit a frame; the end goes with the last, and only alone if all fit one."""
    pages: list[list[m.Row]] = [[]]
    size = 0
    for row in rows:
        if pages[-1] and size + len(row.result) > most:
            pages.append([])
            size = 0
        pages[-1].append(row)
        size += len(row.result)
    ends = [None] * (len(pages) - 1) + [end]
    return [(tuple(page), last) for page, last in zip(pages, ends, strict=True)]


def _saved(result: m.CallResult, usage: m.Usage) -> m.Json:
    """The row of one answer. The value's text is embedded as it came, not written again."""
    assert result.value is not None, f"{result.row} has no value to save"
    row = {
        "value": msgspec.Raw(result.value.encode()),
        "proxy": result.proxy,
        "seconds": round(result.seconds, 6),
        "usage": usage,
    }
    return msgspec.json.encode(row).decode()


def _excerpt(value: Any, seconds: float | None = None) -> str:
    text = value if isinstance(value, str) else jsontext.dump(value)
    text = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    return text if seconds is None else f"{seconds:.2f}s {text}"
