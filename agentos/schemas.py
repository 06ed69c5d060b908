"""Answers held against JSON Schemas: what is unusable, and the process in which it is found out.

A schema is a program of whoever wrote the task. A pattern may backtrack for years (OWASP, "Regular
expression Denial of Service"), references may double the work at every level; and a regular
expression keeps Python's lock all the while, heartbeats and all. So agents' runners have it done by
a process that can be lost, `python -m agentos.schemas`; `agentos.runtime.validator` talks to it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec
import orjson

from agentos.answers import MAX_BYTES, describe, quote
from agentos.core import jsontext
from agentos.core.errors import AgentError, GraphError, UnusableAnswer

CPU_S = 2.0
"""Seconds of CPU that one answer may take. A megabyte, which is what `limits.max_result_bytes` lets
through, of 66,000 objects with two properties each took 1.1."""
KEPT = 64
"""Schemas that are kept ready; graphs of a kind have the same ones."""


def check_schema(schema: Mapping[str, Any]) -> Any:
    """Check that a JSON Schema is one, in draft 2020-12 unless `$schema` names another.

    Returns:
        the dialect: `jsonschema`'s class of validators for it.

    Raises:
        GraphError: it is none; `where` is the path of the fault, like `$.properties.x`.
    """
    import jsonschema

    if not isinstance(schema.get("$schema", ""), str):
        raise GraphError("$.$schema", "must be a string")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise GraphError(error.json_path, f"not a JSON Schema: {quote(error.message)}") from None
    return kind


class Schema:
    """A JSON Schema, ready to be used. It takes whatever time it takes.

    Args:
        text: the schema, as JSON.

    Raises:
        AgentError: it is none (not retryable).
    """

    def __init__(self, text: str) -> None:
        from referencing import Registry

        schema = orjson.loads(text)
        try:
            kind = check_schema(schema)
        except GraphError as error:
            raise _unfit(f"cannot be used, at {error.where}: {error.reason}") from None
        # References to other documents are refused: a task must not make us fetch a URL.
        self._validator = kind(schema, registry=Registry())

    def meets(self, value: Any, *, max_bytes: int = MAX_BYTES) -> bool:
        """Hold an answer against it. Text is read as JSON; if that leads nowhere, it is text.

        Args:
            value: a JSON value, as an agent gave it.
            max_bytes: the largest size of a text that is read.

        Returns:
            whether what was read of the text is what meets the schema.

        Raises:
            UnusableAnswer: it does not meet it; names the place and the fault, and quotes a text.
            AgentError: the schema refers to what is not in it, or to itself (not retryable).
        """
        if not isinstance(value, str):
            if (fault := self._fault(value)) is not None:
                raise UnusableAnswer(_said(fault))
            return False
        not_json = ""
        try:
            unmet = self._fault(jsontext.parse(value, max_bytes=max_bytes))
        except GraphError as error:
            unmet, not_json = None, f"the answer is not usable JSON ({error})"
        else:
            if unmet is None:
                return True
        if (fault := self._fault(value)) is None:
            return False
        reason = _said(fault if unmet is None else unmet)
        if not_json and fault.validator == "type":  # it was not to be a text
            reason = not_json
        raise UnusableAnswer(f"{reason}: {quote(value)}")

    def _fault(self, value: Any) -> Any:
        """The fault that says most about a value that does not meet it; None if it does."""
        import jsonschema
        from referencing.exceptions import Unresolvable

        try:
            return jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except Unresolvable as error:
            raise _unfit(f"refers to what it does not hold: {quote(str(error))}") from None
        except RecursionError:
            raise _unfit("refers to itself without end") from None


def _said(fault: Any) -> str:
    place = "" if fault.json_path == "$" else f" at {fault.json_path[1:].lstrip('.')}"
    return f"the answer does not meet the schema{place}: {quote(fault.message)}"


def _unfit(reason: str) -> AgentError:
    return AgentError(f"the node's schema {reason}", retryable=False)


# -- the process -----------------------------------------------------------------------------------


class Question(msgspec.Struct, array_like=True):
    """A line that the process reads. `max_bytes`: the largest text that is read as JSON."""

    schema: str
    value: Any
    max_bytes: int


class Verdict(msgspec.Struct, array_like=True):
    """A line that it answers: what `Schema.meets` returned, or the reason of its error."""

    read: bool = False
    error: str = ""
    retryable: bool = False


def serve(questions: BinaryIO, verdicts: BinaryIO) -> None:
    """Answer questions, line by line, until there are no more; or be ended by one, by SIGVTALRM."""
    schemas = lru_cache(maxsize=KEPT)(Schema)
    while line := questions.readline():
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)  # it ends the process, whatever it is at
        try:
            q = msgspec.json.decode(line, type=Question)
            verdict = Verdict(read=schemas(q.schema).meets(q.value, max_bytes=q.max_bytes))
        except AgentError as error:
            verdict = Verdict(error=error.reason, retryable=error.retryable)
        except Exception as error:  # noqa: BLE001 - whatever a schema makes of the library
            verdict = Verdict(error=_unfit(f"cannot be used: {describe(error)}").reason)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        verdicts.write(msgspec.json.encode(verdict) + b"\n")
        verdicts.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
