"""What an operator reads: every takeover, refusal and failure, with its task and epoch, and no text."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.runtime.journal import Journal

E11, E12 = Epoch(1, 1), Epoch(1, 2)
CLAIM = m.Claim(
    task_id=7,
    expected=E11,
    scope="regional",
    claimant="region/r",
    region="region/r",
    owner="proxy/r/2",
)
FAILED = m.End("failed", '{"error": "SECRET"}', "node 'a': SECRET")
ROW = m.Row("a", '{"value": "SECRET"}')


def noted(*messages: m.Message, to: str = "store") -> list[dict[str, Any]]:
    with capture_logs() as lines:
        journal = Journal(structlog.get_logger().bind(role="region/r"))
        journal.note([m.Envelope(to, "region/r", message) for message in messages])
    assert "SECRET" not in str(lines)
    assert all(line.pop("role") == "region/r" for line in lines)
    return lines


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (m.Claim(**{n: getattr(CLAIM, n) for n in CLAIM.__struct_fields__} | {"lost": True}), "task_taken_over"),
        (m.Dropped(task_id=7, epoch=E11, reason="no room"), "task_dropped"),
        (m.Declined(task_id=7, epoch=E11, agents=("x",), reason="no room"), "task_declined"),
        (m.Stop(task_id=7, epoch=E12), "task_stopped"),
        (m.Record(task_id=7, epoch=E11, rows=(ROW,), end=FAILED), "task_failed"),
        (
            m.Recorded(task_id=7, epoch=E11, outcome="stale", nodes=(), ended=False, current=E12, state="running"),
            "write_refused",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_decisions_about_a_task(message: m.Message, event: str) -> None:
    """Each is one line at INFO, that names the task and the epoch."""
    (line,) = noted(message)
    assert (line["event"], line["log_level"], line["task_id"]) == (event, "info", 7)
    assert "(1, " in str(line.get("epoch", line.get("below")))


def test_the_usual_is_not_logged() -> None:
    """What every task does is in no log: they would be as many lines as there are tasks."""
    usual = [
        CLAIM,
        m.Record(task_id=7, epoch=E11, rows=(ROW,), end=m.End("succeeded", '{"output": "SECRET"}')),
        m.Recorded(
            task_id=7, epoch=E11, outcome="applied", nodes=("a",), ended=True, current=E11,
            state="succeeded",
        ),
        m.Run(task_id=7, epoch=E11, task_description="SECRET", saved=0),
    ]  # fmt: skip
    assert noted(*usual) == []


def test_a_word_to_many_is_one_line() -> None:
    """A region tells all of its proxies who is suspected, and is a warning once."""
    down = m.PeerDown(proxies=("proxy/r/1",))
    with capture_logs() as lines:
        journal = Journal(structlog.get_logger())
        journal.note([m.Envelope(f"proxy/r/{n}", "region/r", down) for n in range(2, 9)])
        journal.note([m.Envelope("proxy/r/2", "region/r", m.PeerDown(proxies=("proxy/r/3",)))])
    assert [(line["log_level"], line["proxies"]) for line in lines] == [
        ("warning", ["proxy/r/1"]),
        ("warning", ["proxy/r/3"]),
    ]
