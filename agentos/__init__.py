"""Agent OS: durable coordination for large clusters of AI agents.

Each name is imported when it is first used: who needs a client does not pay for the agents' clients.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentos.agents.echo import EchoAgent
    from agentos.agents.function import FunctionAgent, agent
    from agentos.agents.openai import OpenAIAgent
    from agentos.blocking import Client, Task
    from agentos.client import AsyncClient
    from agentos.cluster import Cluster
    from agentos.core.epoch import Epoch
    from agentos.core.errors import (
        AddressTaken,
        AgentError,
        AgentNotOffered,
        AgentOSError,
        ClusterUnreachable,
        ConfigError,
        GraphError,
        HostilePeerError,
        IncompatibleDatabase,
        KeyConflict,
        LocalProtocolError,
        NotTheOwner,
        Overloaded,
        RemoteProtocolError,
        ResultTimeout,
        StorageError,
        TaskCancelled,
        TaskFailed,
        TaskNotFound,
        UnissuedEpoch,
        UnusableAnswer,
    )
    from agentos.core.limits import Limits
    from agentos.core.messages import ClusterInfo, Ended, Event, SavedRow, State, TaskInfo
    from agentos.core.ports import AgentAnswer, AgentRequest
    from agentos.handles import AsyncTask
    from agentos.host import Host
    from agentos.reach import connect
    from agentos.runtime.refs import Ref, RemoteActorError
    from agentos.runtime.switch import Switch
else:
    from importlib import import_module
    from types import MappingProxyType

    _HOMES = MappingProxyType(
        {
            "EchoAgent": "agentos.agents.echo",
            "FunctionAgent": "agentos.agents.function",
            "agent": "agentos.agents.function",
            "OpenAIAgent": "agentos.agents.openai",
            "Client": "agentos.blocking",
            "Task": "agentos.blocking",
            "AsyncClient": "agentos.client",
            "connect": "agentos.reach",
            "Cluster": "agentos.cluster",
            "Host": "agentos.host",
            "Epoch": "agentos.core.epoch",
            "AddressTaken": "agentos.core.errors",
            "AgentError": "agentos.core.errors",
            "AgentNotOffered": "agentos.core.errors",
            "AgentOSError": "agentos.core.errors",
            "ClusterUnreachable": "agentos.core.errors",
            "ConfigError": "agentos.core.errors",
            "GraphError": "agentos.core.errors",
            "IncompatibleDatabase": "agentos.core.errors",
            "KeyConflict": "agentos.core.errors",
            "LocalProtocolError": "agentos.core.errors",
            "Overloaded": "agentos.core.errors",
            "RemoteProtocolError": "agentos.core.errors",
            "ResultTimeout": "agentos.core.errors",
            "StorageError": "agentos.core.errors",
            "TaskCancelled": "agentos.core.errors",
            "TaskFailed": "agentos.core.errors",
            "TaskNotFound": "agentos.core.errors",
            "UnissuedEpoch": "agentos.core.errors",
            "UnusableAnswer": "agentos.core.errors",
            "Limits": "agentos.core.limits",
            "AgentAnswer": "agentos.core.ports",
            "AgentRequest": "agentos.core.ports",
            "AsyncTask": "agentos.handles",
            "HostilePeerError": "agentos.core.errors",
            "NotTheOwner": "agentos.core.errors",
            "ClusterInfo": "agentos.core.messages",
            "Ended": "agentos.core.messages",
            "Event": "agentos.core.messages",
            "SavedRow": "agentos.core.messages",
            "State": "agentos.core.messages",
            "TaskInfo": "agentos.core.messages",
            "Ref": "agentos.runtime.refs",
            "RemoteActorError": "agentos.runtime.refs",
            "Switch": "agentos.runtime.switch",
        }
    )

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "AddressTaken",
    "AgentAnswer",
    "AgentError",
    "AgentNotOffered",
    "AgentOSError",
    "AgentRequest",
    "AsyncClient",
    "AsyncTask",
    "Client",
    "Cluster",
    "ClusterInfo",
    "ClusterUnreachable",
    "ConfigError",
    "EchoAgent",
    "Ended",
    "Epoch",
    "Event",
    "FunctionAgent",
    "GraphError",
    "Host",
    "HostilePeerError",
    "IncompatibleDatabase",
    "KeyConflict",
    "Limits",
    "LocalProtocolError",
    "NotTheOwner",
    "OpenAIAgent",
    "Overloaded",
    "Ref",
    "RemoteActorError",
    "RemoteProtocolError",
    "ResultTimeout",
    "SavedRow",
    "State",
    "StorageError",
    "Switch",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskInfo",
    "TaskNotFound",
    "UnissuedEpoch",
    "UnusableAnswer",
    "agent",
    "connect",
]
