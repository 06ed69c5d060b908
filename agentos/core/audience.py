"""Those who watch a run, and the events that they are told."""

from __future__ import annotations

from typing import Final

from agentos.core import messages as m


class Audience:
    """Who watches one run.

    A run and its calls share it, instead of one holding the other's method: what ends is freed at
    once, and not when a collector has found the cycle.

    Args:
        run: the claim that they watch.
        watchers: clients, and whether each wants to hear of progress, or only of the end.
    """

    def __init__(self, run: m.Run, watchers: dict[str, bool]) -> None:
        self.watchers: Final = watchers
        self._task_id = run.task_id
        self._epoch = run.epoch

    def event(
        self,
        event: str,
        node: str = "",
        round_: int = 0,
        slot: str = "",
        proxy: str = "",
        text: str = "",
    ) -> list[m.Send]:
        """Tell those who want to hear of progress."""
        if not self.watchers:
            return []
        message = m.Event(
            task_id=self._task_id,
            epoch=self._epoch,
            event=event,
            node=node,
            round=round_,
            slot=slot,
            proxy=proxy,
            text=text,
        )
        return [m.Send(client, message) for client, all_ in self.watchers.items() if all_]
