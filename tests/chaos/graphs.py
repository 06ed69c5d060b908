"""The tasks of the campaign, and what each of them must yield."""

from __future__ import annotations

import json
from typing import Any

from agentos.core.deliberation import Deliberation
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits
from tests.chaos.agents import answer

CALL = {"agent": "work", "timeout_s": 30, "retries": 50}
KINDS = ("chain", "fan", "samples", "jury")


def graph(number: int) -> dict[str, Any]:
    """The `number`th task: kinds take turns, and no two tasks ask the same."""
    first = CALL | {"prompt": "first of ${input.number}"}
    nodes: dict[str, dict[str, Any]]
    match KINDS[number % len(KINDS)]:
        case "chain":
            nodes = {"n0": first}
            for i in range(1, 5):
                nodes[f"n{i}"] = CALL | {"prompt": f"after ${{n{i - 1}}}"}
        case "fan":
            nodes = {"first": first}
            nodes |= {f"arm{i}": CALL | {"prompt": f"arm {i} of ${{first}}"} for i in range(4)}
            arms = " ".join(f"${{arm{i}}}" for i in range(4))
            nodes["last"] = CALL | {"prompt": f"all of {arms}"}
        case "samples":
            nodes = {
                "first": first,
                "many": CALL | {"prompt": "many of ${first}", "samples": 6},
                "last": CALL | {"prompt": "last of ${many}"},
            }
        case _:
            jury = {"samples": 3, "voters": 3, "voter": "vote", "rounds": 2}
            nodes = {
                "first": first,
                "jury": CALL | {"prompt": "judge ${first}"} | jury,
                "last": CALL | {"prompt": "last of ${jury}"},
            }
    return {"input": {"number": number}, "nodes": nodes, "output": list(nodes)[-1]}


def expected(number: int) -> tuple[Any, dict[str, Any]]:
    """What the task must yield, worked out in order, in one process, without any failure.

    Returns:
        its output, and the value of each row that must be saved for it.
    """
    description = graph(number)
    parsed = parse_graph(json.dumps(description), Limits())
    values: dict[str, Any] = {"input": description["input"]}
    rows: dict[str, Any] = {}
    for name, node in parsed.nodes.items():  # written in an order in which they can run
        prompt = node.prompt.render(values, Limits().max_prompt_bytes)
        deliberation = Deliberation(node, prompt)
        while asks := deliberation.advance():
            for ask in asks:
                value = answer(ask.agent, ask.prompt, ask.slot, ask.schema)
                deliberation.answer(ask.round, ask.slot, value)
                if node.samples > 1 or node.rounds > 1:
                    rows[f"{name}/{ask.round}/{ask.slot}"] = value
        rows[name] = values[name] = deliberation.value
    return values[description["output"]], rows
