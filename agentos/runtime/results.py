"""What a call's result may carry, whatever its agent has put in."""

from __future__ import annotations

import math
import traceback

from agentos import answers
from agentos.core import messages as m
from agentos.core.errors import AgentError
from agentos.core.limits import MAX_INT, MAX_RETRY_AFTER_S
from agentos.core.ports import AgentAnswer

ERROR_CHARACTERS = 1_000


def result(
    invoke: m.Envelope, call: m.Call, outcome: str | AgentError, usage: m.Usage, seconds: float
) -> m.CallResult:
    """What a call has come to: the JSON text of its value, or why there is none."""
    failure = outcome if isinstance(outcome, AgentError) else None
    return m.CallResult(
        task_id=call.task_id,
        epoch=call.epoch,
        row=call.row,
        attempt=call.attempt,
        proxy=invoke.sender,
        value=None if isinstance(outcome, AgentError) else outcome,
        error="" if failure is None else answers.quote(failure.reason, ERROR_CHARACTERS),
        retryable=failure is not None and failure.retryable,
        retry_after_s=None if failure is None else failure.retry_after_s,
        usage=usage,
        seconds=seconds,
    )


def usage_of(answer: AgentAnswer) -> m.Usage:
    """The tokens of an answer, as far as they are counts: an agent's slip must not stop a result."""
    return m.Usage(1, 0, _count(answer.prompt_tokens), _count(answer.completion_tokens))


def _count(number: object) -> int:
    return min(max(number, 0), MAX_INT) if isinstance(number, int) else 0


def plain(error: AgentError) -> AgentError:
    """The same error, of the types that it should have: an agent may have put in anything."""
    return AgentError(
        str(error.reason),
        retryable=bool(error.retryable),
        retry_after_s=_retry_after_s(error.retry_after_s),
    )


def _retry_after_s(seconds: object) -> float | None:
    if not isinstance(seconds, int | float) or (isinstance(seconds, float) and math.isnan(seconds)):
        return None
    return float(min(max(seconds, 0), MAX_RETRY_AFTER_S))


def trace(error: BaseException) -> str:
    """The plain traceback: a richer one might show local variables, and so prompts and keys."""
    return "".join(traceback.format_exception(error))
