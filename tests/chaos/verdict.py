"""Whether everything is right at the end: from the database, the clients, and the log outside."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentos import Limits
from tests.chaos import calls as outside
from tests.chaos.cluster import Attacked
from tests.chaos.graphs import expected


class Report(msgspec.Struct, kw_only=True):
    """What came of a campaign. `faults`: each of them is a promise broken."""

    seed: int
    seconds: float
    faults: list[str]
    deeds: dict[str, int]
    kills: int
    missed: int
    tasks: int
    client_retries: int
    calls: int
    repeated: dict[str, int]
    takeovers: dict[str, dict[str, float]]
    goal_s: float
    task_s: dict[str, float]

    @property
    def within_goal(self) -> bool:
        """Whether clean takeovers from a dead proxy were within the goal, if there were any."""
        clean = self.takeovers.get("proxy, alone")
        return clean is None or clean["p99"] <= self.goal_s


def of_database(file: Path, accepted: dict[int, int]) -> list[str]:
    """Check every task and every row against what they must be.

    Args:
        file: the SQLite file of a cluster that has stopped.
        accepted: the tasks that were acknowledged: number and id.
    """
    faults = []
    with contextlib.closing(sqlite3.connect(file)) as db:
        tasks = {
            row[0]: row[1:]
            for row in db.execute(
                "SELECT task_id, task_key, state, global_epoch, regional_epoch, error, "
                "response_doc_id FROM Tasks"
            )
        }
        keys = Counter(task[0] for task in tasks.values())
        faults += [f"task {key} is there {n} times" for key, n in keys.items() if n > 1]
        responses = Counter(task[5] for task in tasks.values())
        faults += [f"response {doc} belongs to {n} tasks" for doc, n in responses.items() if n > 1]
        stored = db.execute("SELECT count(*) FROM Documents WHERE doc_type = 'response'")
        if (count := stored.fetchone()[0]) != len(tasks):
            faults.append(f"{len(tasks)} tasks have {count} responses")
        rows: dict[int, dict[str, tuple[Any, tuple[int, int]]]] = {}
        for task_id, node_id, global_, regional, result in db.execute("SELECT * FROM Progress"):
            value = json.loads(result)["value"]
            rows.setdefault(task_id, {})[node_id] = (value, (global_, regional))
        for number, task_id in accepted.items():
            if task_id not in tasks:
                faults.append(f"task {task_id} was accepted, and is lost")
                continue
            faults += _of_task(number, task_id, tasks[task_id], rows.get(task_id, {}), db)
    return faults


def _of_task(
    number: int, task_id: int, task: Any, rows: dict[str, Any], db: sqlite3.Connection
) -> list[str]:
    key, state, global_, regional, error, response = task
    if state != "succeeded":
        return [f"task {task_id} is {state}: {error}"]
    faults = []
    if key != f"chaos-{number}":
        faults.append(f"task {task_id} was submitted as chaos-{number}, and is {key}")
    output, right = expected(number)
    text = db.execute("SELECT doc_content FROM Documents WHERE doc_id = ?", (response,)).fetchone()
    if json.loads(text[0])["output"] != output:
        faults.append(f"task {task_id} has the output {text[0]}, not {output!r}")
    if rows.keys() != right.keys():
        wrong = sorted(rows.keys() ^ right.keys())
        faults.append(f"task {task_id} lacks rows, or has more than it should: {wrong}")
    for name, (value, epoch) in rows.items():
        if value != right.get(name):
            faults.append(f"row {name} of task {task_id} is {value!r}, not {right.get(name)!r}")
        if epoch > (global_, regional):
            faults.append(f"row {name} of task {task_id} is of {epoch}, which no claim gave")
    return faults


def report(attacked: Attacked, seed: int, seconds: float) -> Report:
    """Judge what was done to a cluster that has stopped.

    Args:
        attacked: the cluster, its load, its watch and its hand.
        seed: the hand's.
        seconds: how long it took.
    """
    load, watch, done = attacked.load, attacked.watch, attacked.hand.done
    asked = outside.read(attacked.calls)
    again = outside.repeats(asked, watch, done)
    taken = outside.takeovers(asked, watch, done)
    faults = [
        *load.faults,
        *watch.faults,
        *of_database(attacked.data / "agentos.db", load.accepted),
    ]
    faults += [f"call {which} was made although it was saved" for which in again.needless]
    kinds = {
        f"{role}, {what}": [t.seconds for t in taken if t.role == role and (t.clean or not alone)]
        for role in ("proxy", "region")
        for what, alone in (("alone", True), ("all", False))
    }
    deeds = Counter(
        f"{deed.act.what} {'link' if '>' in deed.act.target else deed.act.target.partition('/')[0]}"
        for deed in done
    )
    return Report(
        seed=seed,
        seconds=round(seconds, 1),
        faults=faults,
        deeds=dict(sorted(deeds.items())),
        kills=sum(deed.act.what == "kill" for deed in done),
        missed=attacked.hand.missed,
        tasks=len(load.accepted),
        client_retries=load.retries,
        calls=sum(map(len, asked.values())),
        repeated=dict(again.why.most_common()),
        takeovers={kind: percentiles(times) for kind, times in kinds.items() if times},
        goal_s=Limits().suspicion_s + 1.0,
        task_s=percentiles(load.waits),
    )


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """How many there are, the median, the 99th percentile, and the longest."""
    if not times:
        return {}
    ordered = sorted(times)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {"n": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": round(ordered[-1], 3)}
