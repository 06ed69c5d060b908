"""What the command line says of a task's progress: a line for each event."""

from agentos.cli.article import ARTICLE
from agentos.cli.progress import TaskView, sentence
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits


def test_sentences() -> None:
    """Each event is a line for people: which call, of which node, on which proxy."""
    graph = parse_graph(ARTICLE, Limits())
    view = TaskView(graph)

    def say(
        event: str, node: str = "draft", slot: str = "", round_: int = 0, text: str = ""
    ) -> str:
        message = m.Event(
            task_id=1,
            epoch=Epoch(1, 1),
            event=event,
            node=node,
            slot=slot,
            round=round_,
            proxy="proxy/r1/2",
            text=text,
        )
        view.take(message)
        return sentence(message, view.nodes.get(node))

    assert say("started", node="") == "started on r1/2"
    assert say("call", slot="s0") == "draft: sample 1 -> r1/2"
    assert say("call", slot="v1", round_=2) == "draft: round 2, vote 2 -> r1/2"
    assert say("answer", slot="s2", text="0.10s a\nb") == "draft: sample 3 <- r1/2  0.10s a b"
    assert say("call", node="plan", slot="s0") == "plan: call -> r1/2"
    assert say("node", node="plan", text="x" * 200).startswith("plan: done  xxx")
    assert view.done == 1
    assert say("retry", slot="s0", text="no") == (
        "draft: sample 1 failed on r1/2, is tried again: no"
    )
    assert say("lost", slot="s0") == "draft: sample 1 was lost with r1/2, is placed again"


def test_a_watch_without_the_graph() -> None:
    """A node of which one sample was heard has a call; of which more were, samples."""
    view = TaskView()

    def say(slot: str, round_: int = 1) -> str:
        message = m.Event(
            task_id=1, epoch=Epoch(1, 1), event="call", node="a", slot=slot, round=round_
        )
        view.take(message)
        return sentence(message, view.nodes["a"])

    assert say("s0") == "a: call ->"
    assert say("s1") == "a: sample 2 ->"
    assert say("s0") == "a: sample 1 ->"
    assert say("s0", 2) == "a: round 2, call ->"


def test_why_a_task_waits() -> None:
    """A task without a place says why, once for each reason, and where it is placed at last."""
    view = TaskView()
    waits = m.Event(task_id=1, epoch=Epoch(1, 0), event="placed", text="no region offers ['x']")
    assert not view.knows(waits)
    view.take(waits)
    assert sentence(waits) == "waits to be placed: no region offers ['x']"
    assert view.knows(waits)
    placed = m.Event(task_id=1, epoch=Epoch(1, 1), event="placed", proxy="region/r1")
    assert not view.knows(placed)
    assert sentence(placed) == "placed in r1"
