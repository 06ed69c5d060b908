"""An agent that answers its prompt: for tests, and to load a cluster without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agentos.core.ports import AgentAnswer, AgentRequest


class EchoAgent:
    """Answers the prompt, at once or after a while; a ballot with its first choice.

    Args:
        name: what nodes call it.
        delay_s: seconds before it answers.
        max_concurrency: calls at a time.
    """

    def __init__(
        self, name: str = "echo", delay_s: float = 0.0, max_concurrency: int = 1024
    ) -> None:
        self.name = name
        self.max_concurrency = max_concurrency
        self._delay_s = delay_s

    async def call(self, request: AgentRequest) -> AgentAnswer:
        """Answer the prompt, or `{"choice": …}` to a vote's schema. Tokens are words."""
        if self._delay_s > 0:
            await asyncio.sleep(self._delay_s)
        words = len(request.prompt.split())
        value = request.prompt if request.schema is None else _vote(request.schema, request.prompt)
        return AgentAnswer(value=value, prompt_tokens=words, completion_tokens=words)

    async def close(self) -> None:
        """Nothing to release."""


def _vote(schema: Mapping[str, Any], prompt: str) -> Any:
    """The first choice that a ballot offers; any other schema is not this agent's business."""
    match schema:
        case {"properties": {"choice": {"enum": [first, *_]}}}:
            return {"choice": first}
    return prompt
