"""Where a region sends agent calls: each to the least loaded of the proxies that can run it."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from agentos.core import messages as m
from agentos.core.balancing import Balancer
from agentos.core.epoch import Epoch
from agentos.core.fleet import Fleet

REMEMBERED = 8_192
"""Placements that are remembered, so that a call that is asked for again goes to the same proxy."""


class Places:
    """Gives calls to proxies, and gives a call that comes again to the proxy that has it.

    Args:
        region: the region's address, for refusals.
        proxies: its proxies.
        balancer: chooses among those that offer the agent.
        retry_after_s: when a call that found no place may be tried again.
    """

    def __init__(
        self, region: str, proxies: Fleet, balancer: Balancer, retry_after_s: float
    ) -> None:
        self._region = region
        self._proxies = proxies
        self._balancer = balancer
        self._retry_after_s = retry_after_s
        self._given: OrderedDict[tuple[int, Epoch, str, int], str] = OrderedDict()

    def place(self, q: m.Place) -> list[m.Send]:
        """Give each call of one round to a proxy of its own, as far as there are enough."""
        call, out = q.call, []
        loads = self._proxies.loads(call.agent)
        used: set[str] = set()
        for row in q.rows:
            key = (call.task_id, call.epoch, row, call.attempt)
            proxy = self._given.get(key)
            if proxy is None or proxy not in loads:
                proxy = self._balancer.choose(loads, used if len(used) < len(loads) else ())
            if proxy is None:
                out.append(self._none_for(call, row))
                continue
            used.add(proxy)
            self._proxies.give(proxy)
            self._given[key] = proxy
            one = call if row == call.row else msgspec.structs.replace(call, row=row)
            out.append(m.Send(proxy, one))
            placed = m.Placed(
                task_id=call.task_id, epoch=call.epoch, row=row, attempt=call.attempt, proxy=proxy
            )
            out.append(m.Send(call.owner, placed))
        while len(self._given) > REMEMBERED:
            self._given.popitem(last=False)
        return out

    def _none_for(self, call: m.Call, row: str) -> m.Send:
        refused = m.CallRefused(
            task_id=call.task_id,
            epoch=call.epoch,
            row=row,
            attempt=call.attempt,
            reason=f"no live proxy of {self._region} offers {call.agent!r}",
            retry_after_s=self._retry_after_s,
        )
        return m.Send(call.owner, refused)
