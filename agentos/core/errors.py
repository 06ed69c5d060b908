"""Every error that Agent OS raises on purpose, under one root.

A caller that wants to act on a failure catches the class that names it; a caller that only wants
to know whether the failure is ours catches `AgentOSError`. Messages name the task, the node, the
value and the way out. Two families follow h11's distinction: `LocalProtocolError` (you misused
the API) and `RemoteProtocolError` (the peer misbehaved).
"""

from __future__ import annotations

from typing import Any


class AgentOSError(Exception):
    """The root of every error raised by Agent OS."""

    code = "error"
    """What the wire calls this class; no two share one."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is made of: a subclass may be made of other arguments than `args`."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[AgentOSError], args: tuple[Any, ...], state: dict[str, Any]
) -> AgentOSError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class LocalProtocolError(AgentOSError):
    """The caller used the library wrongly; nothing was sent or written."""

    code = "local_protocol"


class RemoteProtocolError(AgentOSError):
    """A peer sent something that the protocol does not allow; it was dropped and counted."""

    code = "remote_protocol"


class HostilePeerError(RemoteProtocolError):
    """A peer did what no honest one does by mistake; it is disconnected at once."""

    code = "hostile_peer"


class GraphError(AgentOSError):
    """A task description that cannot be run. `where` is the path of the fault, like `nodes.a.rounds`."""

    code = "bad_graph"

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        self.reason = reason


class ConfigError(AgentOSError):
    """A configuration that cannot be used; the message names the file, the line and the key."""

    code = "bad_config"


class Overloaded(AgentOSError):
    """A bound was reached. Nothing was accepted; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"{reason}; try again in {retry_after_s:g} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class KeyConflict(AgentOSError):
    """The same user used the same key for a different task description."""

    code = "key_conflict"


class AgentNotOffered(AgentOSError):
    """The task asks for agents that no live proxy offers, and the caller asked not to wait."""

    code = "agent_not_offered"


class TaskNotFound(AgentOSError):
    """No task has this id."""

    code = "task_not_found"


class TaskFailed(AgentOSError):
    """The task ended as FAILED; the message carries the node and the reason."""

    code = "task_failed"


class TaskCancelled(AgentOSError):
    """The task was cancelled before it ended."""

    code = "task_cancelled"


class ResultTimeout(AgentOSError, TimeoutError):
    """The task did not end within the time that the caller gave; it goes on."""

    code = "result_timeout"


class ClusterUnreachable(AgentOSError, ConnectionError):
    """No gateway answered at any of the given URLs within the time allowed."""

    code = "unreachable"


class AddressTaken(AgentOSError):
    """The address to listen on, or the name to register, is in use by somebody who is alive."""

    code = "address_taken"


class StorageError(AgentOSError):
    """The database refused or failed; the message says which file or server, and why."""

    code = "storage"


class IncompatibleDatabase(StorageError):
    """The database was made by another version, or is not an Agent OS database at all."""

    code = "incompatible_database"


class UnissuedEpoch(StorageError):
    """A writer used an epoch newer than any that a claim has issued: it was made up, not claimed."""

    code = "unissued_epoch"


class NotTheOwner(AgentOSError):
    """A proxy reported for a task whose claim is another's: nothing was written."""

    code = "not_the_owner"


class AgentError(AgentOSError):
    """One call to an agent failed. `retryable` says whether the same call may succeed later."""

    code = "agent"

    def __init__(self, reason: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class UnusableAnswer(AgentError):
    """The agent answered, but the answer cannot be used: empty, cut off, wrong type, schema not met."""

    code = "unusable_answer"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, retryable=True)
