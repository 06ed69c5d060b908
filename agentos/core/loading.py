"""A task that a proxy was given and has not begun: its rows are being read, or it never will be."""

from __future__ import annotations

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.jsontext import dump
from agentos.core.rows import plain


class Loading:
    """A task whose saved rows are being read, page by page, before its walk begins.

    `doubtful`: the proxy stood still meanwhile, and must check the claim before it starts anything.
    `repeats`: how often the next page was asked for in vain.
    """

    def __init__(self, run: m.Run, watchers: dict[str, bool]) -> None:
        self.run = run
        self.watchers = watchers
        self.rows: list[m.SavedRow] = []
        self.doubtful = False
        self.repeats = 0

    @property
    def epoch(self) -> Epoch:
        """That of the claim."""
        return self.run.epoch

    @property
    def ref(self) -> str:
        """Tells the pages that this claim asked for from those of a claim before it."""
        return f"{self.run.task_id}.{self.epoch.global_epoch}.{self.epoch.regional_epoch}"


def fail_unrun(run: m.Run, reason: str) -> m.Send:
    """End a task without beginning it. If the answer is lost, the region gives it to us again."""
    reason = plain(reason)
    response = dump({"task_id": run.task_id, "state": "failed", "error": {"reason": reason}})
    end = m.End("failed", response, reason)
    return m.Send(m.STORE, m.Record(task_id=run.task_id, epoch=run.epoch, end=end))


def fail_poisonous(run: m.Run) -> m.Send:
    """End a task over which so many owners were lost that it must not cost another."""
    return fail_unrun(
        run,
        f"{run.attempts} owners in a row were lost while they ran it, with nothing saved between "
        f"(limits.max_attempts): {run.lost.removesuffix('; ')}",
    )
