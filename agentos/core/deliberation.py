"""One node's deliberation: rounds of samples, and votes that choose among them.

Without voters the answer that most samples agree on wins (self-consistency: Wang et al., 2022);
with voters, the sample that most of them choose (a jury of models: Verga et al., "Replacing
judges with juries", 2024). Ties go to the earlier sample. Each further round is shown the winner
of the last (self-refinement: Madaan et al., 2023).

A deliberation is a function of the answers that are known: give it those that were saved, and
it asks only for the ones that are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from agentos.core import messages as m
from agentos.core.graph import Node
from agentos.core.jsontext import dump

_OPEN: Final = object()
"""Takes the place of an answer that is not known yet."""


_Words = tuple[str, dict[str, Any] | None]
"""A prompt, and the schema of its answer."""


class Ask:
    """One question: where its answer belongs, and what to ask whom."""

    def __init__(
        self, round: int, slot: str, agent: str, prompt: str, schema: dict[str, Any] | None
    ) -> None:
        self.round: Final = round
        self.slot: Final = slot
        self.agent: Final = agent
        self.prompt: Final = prompt
        self.schema: Final = schema


class Deliberation:
    """The state of one node.

    Args:
        node: what was asked for.
        prompt: the node's prompt with its references filled in.
    """

    def __init__(self, node: Node, prompt: str) -> None:
        self.node = node
        self.value: Any = None
        self.done = False
        self.votes: list[list[int]] = []
        self._prompt = prompt
        self._samples = _slots("s", node.samples)
        self._round = 1
        self._answers: dict[tuple[int, str], Any] = {}
        """By round and slot, what was asked (`_OPEN` until it is answered) or was known before."""

    def answer(self, round_: int, slot: str, value: Any) -> None:
        """Note an answer; a second one for the same place changes nothing.

        A vote that could not be had is None: it names no choice, so it does not count.
        """
        if self._answers.get((round_, slot), _OPEN) is _OPEN:
            self._answers[round_, slot] = value

    def advance(self) -> list[Ask]:
        """What must be asked now and has not been; sets `done` and `value` at the end."""
        while not self.done:
            node = self.node
            values = self._known(self._samples)
            if _OPEN in values:
                return self._ask(self._samples, node.agent, self._question)
            if node.voters:
                voters = _slots("v", node.voters)
                ballots = self._known(voters)
                if _OPEN in ballots:
                    return self._ask(voters, node.voter, partial(self._ballot, values))
                self._choose(values, self._count(ballots))
            else:
                self._choose(values, [1] if node.samples == 1 else self._agreement(values))
        return []

    def _choose(self, values: list[Any], tally: list[int]) -> None:
        """End the round."""
        # index() finds the first of equals: ties go to the earlier sample.
        self.value = values[tally.index(max(tally))]
        self.votes.append(tally)
        if self._round == self.node.rounds:
            self.done = True
        else:
            self._round += 1

    def _known(self, slots: Sequence[str]) -> list[Any]:
        """What is known of this round's questions."""
        return [self._answers.get((self._round, slot), _OPEN) for slot in slots]

    def _ask(self, slots: Sequence[str], agent: str, words: Callable[[], _Words]) -> list[Ask]:
        new = [slot for slot in slots if (self._round, slot) not in self._answers]
        if not new:
            return []
        prompt, schema = words()
        self._answers.update(((self._round, slot), _OPEN) for slot in new)
        return [Ask(self._round, slot, agent, prompt, schema) for slot in new]

    def _question(self) -> _Words:
        if self._round == 1:
            return self._prompt, self.node.schema
        return (
            f"{self._prompt}\n\nThe best answer so far:\n{_text(self.value)}\n\n"
            "Give a better answer to the same request."
        ), self.node.schema

    def _ballot(self, values: list[Any]) -> _Words:
        answers = "\n\n".join(f"Answer {i}:\n{_text(value)}" for i, value in enumerate(values))
        prompt = (
            f"Request:\n{self._prompt}\n\n{answers}\n\n"
            'Which answer is the best one? Reply with JSON, like {"choice": 0}.'
        )
        choice = {"type": "integer", "enum": list(range(len(values)))}
        return prompt, {
            "type": "object",
            "properties": {"choice": choice},
            "required": ["choice"],
            "additionalProperties": False,
        }

    def _count(self, ballots: list[Any]) -> list[int]:
        tally = [0] * self.node.samples
        for ballot in ballots:
            choice = ballot.get("choice") if isinstance(ballot, dict) else None
            if type(choice) is int and 0 <= choice < len(tally):
                tally[choice] += 1
        return tally

    @staticmethod
    def _agreement(values: list[Any]) -> list[int]:
        # Two objects agree whatever the order of their keys.
        keys = [msgspec.json.encode(value, order="sorted") for value in values]
        counts = Counter(keys)
        return [counts[key] for key in keys]


def _slots(letter: str, count: int) -> Sequence[str]:
    return [f"{letter}{i}" for i in range(count)] if count > 1 else (letter + "0",)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)


class NodeRun:
    """A node that is under way.

    `held` is what follows from its answers (nothing more, if it is done), kept back while any of
    its rows is `unsaved`; `None` when there is nothing to let go. `queued`: it waits for room.
    """

    def __init__(self, deliberation: Deliberation) -> None:
        self.deliberation = deliberation
        self.usage = m.Usage()
        self.unsaved = 0
        self.held: list[Ask] | None = None
        self.queued = False
