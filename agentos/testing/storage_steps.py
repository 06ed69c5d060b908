"""The steps that the storage contract is written in: short names for what roles do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.ports import Database, SaveOutcome

REGION, OTHER_REGION, OWNER = "region/a", "region/b", "proxy/a/1"
"""Addresses of two regions, and of a proxy of the first."""

NO_TASK = 2**62
"""An id that no task has."""


def create(database: Database, **options: Any) -> int:
    """A new task that nobody has."""
    return database.create_task(0, "graph", "{}", **options).task_id


def claim_global(database: Database, task_id: int, expected: Epoch, **options: Any) -> m.Claimed:
    """A gateway's claim; for `REGION`, unless told otherwise."""
    claim: dict[str, Any] = {"claimant": "gateway", "region": REGION, **options}
    return database.claim(m.Claim(task_id=task_id, expected=expected, scope="global", **claim))


def claim_regional(database: Database, task_id: int, expected: Epoch, **options: Any) -> m.Claimed:
    """A region's claim; of `REGION` for `OWNER`, unless told otherwise."""
    claim: dict[str, Any] = {"claimant": REGION, "region": REGION, "owner": OWNER, **options}
    return database.claim(m.Claim(task_id=task_id, expected=expected, scope="regional", **claim))


def run(database: Database, **options: Any) -> tuple[int, Epoch]:
    """A new task that `OWNER` runs, and the epoch that it holds."""
    task_id = create(database, claimant="gateway", region=REGION, **options)
    return task_id, claim_regional(database, task_id, Epoch(1, 0)).epoch


def end(database: Database, task_id: int, epoch: Epoch) -> SaveOutcome:
    """The owner's report of success."""
    return database.record(task_id, epoch, [], m.End("succeeded", '"done"'))


def info(database: Database, task_id: int) -> m.TaskInfo:
    """A task that must be there."""
    task = database.get_task(task_id)
    assert task is not None
    return task


class Fixture:
    """What a subclass gives."""

    @pytest.fixture
    @abstractmethod
    def database(self) -> Any:
        """An empty database, closed after the test."""
