"""LangGraph with its SQLite saver: a graph of five nodes, a checkpoint after each step.

`durability="sync"` is the mode in which a step is saved before the next begins. There is one
process, and nobody else goes on when it dies: after the kill it is started again, and resumes each
thread from its checkpoint, as the documentation of persistence shows.
"""

from __future__ import annotations

import operator
import sqlite3
import subprocess
import sys
import time
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from benchmarks.peers import harness


class State(TypedDict):
    task: str
    outputs: Annotated[dict[str, str], operator.or_]


def compiled() -> Any:
    path = harness.folder() / "langgraph.sqlite"
    saver = SqliteSaver(sqlite3.connect(path, check_same_thread=False))
    saver.setup()
    graph = StateGraph(State)

    def add(name: str, *needs: str) -> None:
        def run(state: State) -> dict[str, Any]:
            inputs = [state["outputs"][need] for need in needs]
            return {"outputs": {name: harness.node(state["task"], name, *inputs)}}

        graph.add_node(name, run)

    add("n1")
    for name in harness.MIDDLE:
        add(name, "n1")
    add("z", *harness.MIDDLE)
    graph.add_edge(START, "n1")
    for name in harness.MIDDLE:
        graph.add_edge("n1", name)
    graph.add_edge(list(harness.MIDDLE), "z")
    graph.add_edge("z", END)
    return graph.compile(checkpointer=saver)


def bench(tasks: int, alone: int) -> dict[str, float]:
    graph = compiled()

    def one(task: str) -> str:
        config = {"configurable": {"thread_id": task}}
        state = graph.invoke({"task": task, "outputs": {}}, config, durability="sync")
        return str(state["outputs"]["z"])

    for i in range(harness.WARM_UP):
        one(f"warm{i}")
    median = harness.alone_ms(one, alone)
    start = time.perf_counter()
    outputs = [one(f"t{i}") for i in range(tasks)]
    return harness.rate(tasks, start, outputs) | {"alone_ms": median}


def work(tasks: int) -> None:
    """Run what has not ended yet; resume what has begun."""
    graph = compiled()
    for i in range(tasks):
        config = {"configurable": {"thread_id": f"k{i}"}}
        begun = graph.get_state(config)
        if begun.values and not begun.next:
            continue
        state = None if begun.values else {"task": f"k{i}", "outputs": {}}
        graph.invoke(state, config, durability="sync")


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    command = [sys.executable, "-m", "benchmarks.peers.on_langgraph", "work", str(tasks)]
    process = subprocess.Popen(command)
    marks.await_half(tasks)
    process.kill()
    killed_at = time.monotonic()
    process.wait()
    subprocess.run(command, check=True, timeout=harness.KILL_LIMIT_S)
    report = marks.report(tasks, killed_at, tasks)
    graph = compiled()
    states = [graph.get_state({"configurable": {"thread_id": f"k{i}"}}) for i in range(tasks)]
    outputs = [state.values.get("outputs", {}).get("z") for state in states]
    return report | {"incomplete": harness.wrong(outputs)}


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(int(sys.argv[2]))
    else:
        harness.main("langgraph", bench, kill)
