"""The calls of one task that are on their way: placed, answered, repeated, placed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agentos.core import messages as m
from agentos.core.audience import Audience
from agentos.core.deliberation import Ask
from agentos.core.graph import Node
from agentos.core.jsontext import dump
from agentos.core.limits import Limits
from agentos.core.timers import Timers

TimerKey = tuple[int, str]
"""A task's id, and a call's row; "" for the task's unconfirmed writes."""

PLACED_SLACK_S = 10.0
"""Added to twice a call's timeout: the longest that passes before an answer is asked after again."""


class Context:
    """What a run needs of the proxy that carries it."""

    def __init__(
        self,
        address: str,
        region: str,
        limits: Limits,
        timers: Timers[TimerKey],
        run_here: Callable[[m.Call], list[m.Send] | None],
        chance: Callable[[], float],
    ) -> None:
        self.address: Final = address
        self.region: Final = region
        self.limits: Final = limits
        self.timers: Final = timers
        self.run_here: Final = run_here
        """Start a call at home, if it would start at once; `None` when there is no room."""
        self.chance: Final = chance
        """A float in [0, 1), for jitter."""


class Flight:
    """One call that is on its way: to be placed, placed at `proxy`, or waiting to be repeated.

    `tried` are all the proxies that this attempt was given to, as far as we were told.
    """

    def __init__(self, call: m.Call, ask: Ask, node: str) -> None:
        self.call = call
        self.ask: Final = ask
        self.node: Final = node
        self.proxy = ""
        self.tried: set[str] = set()
        self.placing = False
        """The region was asked for a place: it may have given the call to a proxy already."""
        self.asked = 0
        """How often its answer has been asked after."""
        self.lost: tuple[str, ...] = ()
        """The proxies that died, one after the other, while they had it."""

    def may_answer(self, proxy: str) -> bool:
        """Whether this proxy has the call. While no place is known (`Placed` may be lost) any may."""
        return not self.proxy or proxy in self.tried


class Calls:
    """The calls of one run, by their rows.

    Args:
        run: the claim that they run under.
        ctx: the proxy that carries the run.
        audience: is told what happens to a call.
    """

    def __init__(self, run: m.Run, ctx: Context, audience: Audience) -> None:
        self._task_id = run.task_id
        self._epoch = run.epoch
        self._ctx = ctx
        self._audience = audience
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def ask(self, node: Node, asks: Sequence[Ask], priority: int, now: float) -> list[m.Send]:
        """Find places for questions of one node, all of the same agent."""
        rows = []
        for ask in asks:
            call = m.Call(
                task_id=self._task_id,
                epoch=self._epoch,
                row=m.call_row(node.name, ask.round, ask.slot),
                owner=self._ctx.address,
                agent=ask.agent,
                prompt=ask.prompt,
                timeout_s=node.timeout_s,
                schema=None if ask.schema is None else dump(ask.schema),
                priority=priority,
            )
            self._flights[call.row] = Flight(call, ask, node.name)
            rows.append(call.row)
        return self._place(rows, now)

    def answered(self, result: m.CallResult) -> Flight | None:
        """The call that this answers; `None` for an attempt or a proxy that was not asked."""
        flight = self._attempt(result.row, result.attempt)
        return flight if flight is not None and flight.may_answer(result.proxy) else None

    def elsewhere(self, flight: Flight, proxy: str) -> list[m.Send]:
        """Answered by one proxy, a call that was given to others as well is aborted there.

        If that is heard before the region's word of the place, watchers are told of the call first.
        """
        tried = flight.tried
        if len(tried) == 1 and proxy in tried:
            return []
        call, ask, told = flight.call, flight.ask, list[m.Send]()
        if proxy not in tried:
            told = self._audience.event("call", flight.node, ask.round, ask.slot, proxy)
        abort = m.AbortCalls(task_id=call.task_id, epoch=call.epoch, row=call.row)
        return told + [m.Send(other, abort) for other in sorted(tried - {proxy})]

    def wants(self, row: str, attempt: int | None = None) -> bool:
        """Whether this call (this attempt of it) is still to be answered."""
        flight = self._flights.get(row)
        return flight is not None and attempt in {None, flight.call.attempt}

    def done(self, row: str) -> None:
        """Its answer is known, or will never be wanted."""
        self._flights.pop(row, None)
        self._ctx.timers.cancel((self._task_id, row))

    def again(self, flight: Flight, retry_after_s: float | None, now: float) -> None:
        """Repeat a call that failed, after a while."""
        attempt = flight.call.attempt
        flight.call = msgspec.structs.replace(flight.call, attempt=attempt + 1)
        flight.proxy, flight.tried, flight.placing, flight.asked = "", set(), False, 0
        flight.lost = ()
        self._later(flight.call.row, self._backoff(attempt, retry_after_s), now)

    def drop_unplaced(self) -> None:
        """Give up those that run nowhere: they wait to be repeated, or for a free place."""
        for row, flight in list(self._flights.items()):
            if not (flight.proxy or flight.placing):
                self.done(row)

    def abort(self) -> list[m.Send]:
        """Give all of them up."""
        proxies = dict.fromkeys(p for f in self._flights.values() for p in sorted(f.tried))
        for row in list(self._flights):
            self.done(row)
        abort = m.AbortCalls(task_id=self._task_id, epoch=self._epoch)
        return [m.Send(proxy, abort) for proxy in proxies]

    # -- places ----------------------------------------------------------------------------------

    def placed(self, answer: m.Placed, now: float) -> list[m.Send]:
        """The region found a place: the call runs there, or waits there."""
        flight = self._attempt(answer.row, answer.attempt)
        return [] if flight is None else self._at(flight, answer.proxy, now)

    def refused(self, answer: m.CallRefused, sender: str, now: float) -> list[m.Send]:
        """There is no place for the call now; ask again later. Nothing ran, so nothing is spent."""
        flight = self._attempt(answer.row, answer.attempt)
        if flight is None or not (sender == self._ctx.region or flight.may_answer(sender)):
            return []
        limits = self._ctx.limits
        flight.proxy, flight.placing = "", False
        delay_s = min(max(answer.retry_after_s, limits.retry_min_s), limits.retry_max_s)
        self._later(answer.row, delay_s, now)
        return []

    def peer_down(
        self, proxy: str, now: float, *, wait: bool
    ) -> tuple[list[m.Send], list[tuple[Flight, m.CallResult]]]:
        """Calls that were placed at this proxy need another place: at once, or (`wait`) later.

        Returns:
            what is to be sent, and the calls that have cost so many proxies that they get none.
        """
        out: list[m.Send] = []
        poisonous = []
        for row, flight in list(self._flights.items()):
            if flight.proxy == proxy:
                flight.proxy = ""
                flight.lost += (proxy,)
                out += self._audience.event(
                    "lost", flight.node, flight.ask.round, flight.ask.slot, proxy
                )
                if len(flight.lost) >= self._ctx.limits.max_attempts:
                    poisonous.append((flight, self._poisonous(flight)))
                elif wait:
                    self._later(row, self._ctx.limits.resend_s, now)
                else:
                    out += self._place([row], now)
        return out, poisonous

    def _poisonous(self, flight: Flight) -> m.CallResult:
        return m.CallResult(
            task_id=self._task_id,
            epoch=self._epoch,
            row=flight.call.row,
            attempt=flight.call.attempt,
            proxy=flight.lost[-1],
            error=f"{len(flight.lost)} proxies in a row were lost while they ran it "
            f"(limits.max_attempts): {', '.join(flight.lost)}",
        )

    def due(self, row: str, now: float) -> list[m.Send]:
        """A call has no place yet, or should have come back.

        Its answer may be lost, or the call itself: the executor knows which, and does not start
        twice what it still has. The region knows the executor, and whether it is alive.
        """
        flight = self._flights.get(row)
        if flight is None:
            return []
        if not flight.proxy:
            # While the region may have placed it, starting it here as well could pay for it twice.
            return self._ask_region([row], now) if flight.placing else self._place([row], now)
        flight.asked += 1
        if flight.proxy == self._ctx.address:
            return [*self._at(flight, flight.proxy, now), m.Send(flight.proxy, flight.call)]
        return self._ask_region([row], now)

    def _attempt(self, row: str, attempt: int) -> Flight | None:
        flight = self._flights.get(row)
        return flight if flight is not None and flight.call.attempt == attempt else None

    def _place(self, rows: Sequence[str], now: float) -> list[m.Send]:
        """One call with room at home runs here; else the region finds places, and spreads them.

        Work starts where it is and spills over when there is no room, as in Ray's bottom-up
        scheduler (Moritz et al., OSDI 2018).
        """
        flight = self._flights[rows[0]]
        started = self._ctx.run_here(flight.call) if len(rows) == 1 else None
        if started is None:
            return self._ask_region(rows, now)
        return [*self._at(flight, self._ctx.address, now), *started]

    def _ask_region(self, rows: Sequence[str], now: float) -> list[m.Send]:
        for row in rows:
            self._flights[row].placing = True
            self._later(row, self._ctx.limits.resend_s, now)
        place = m.Place(call=self._flights[rows[0]].call, rows=tuple(rows))
        return [m.Send(self._ctx.region, place)]

    def _at(self, flight: Flight, proxy: str, now: float) -> list[m.Send]:
        new = flight.proxy != proxy
        flight.proxy, flight.placing = proxy, False
        flight.tried.add(proxy)
        delay_s = self._ctx.limits.ask_again_s
        if flight.asked:
            delay_s *= 2.0 ** min(flight.asked, 30)
        self._later(flight.call.row, min(delay_s, 2 * flight.call.timeout_s + PLACED_SLACK_S), now)
        ask = flight.ask
        return self._audience.event("call", flight.node, ask.round, ask.slot, proxy) if new else []

    def _later(self, row: str, delay_s: float, now: float) -> None:
        self._ctx.timers.set((self._task_id, row), now + delay_s)

    def _backoff(self, attempt: int, retry_after_s: float | None) -> float:
        """Exponential with full jitter (AWS Architecture Blog, 2015), never before Retry-After."""
        limits = self._ctx.limits
        most = min(limits.retry_max_s, limits.retry_min_s * 2.0 ** min(attempt, 30))
        told = min(retry_after_s or 0.0, limits.max_timeout_s)
        return max(told, limits.retry_min_s / 2 + self._ctx.chance() * most)
