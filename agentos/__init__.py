"""Agent OS: durable coordination for large clusters of AI agents.

Each name is imported when it is first used: who needs a client does not pay for the agents' clients.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentos.agents.echo import EchoAgent
    from agentos.agents.function import FunctionAgent, agent
    from agentos.agents.openai import OpenAIAgent
    from agentos.blocking import Client, Task
    from agentos.client import AsyncClient, connect
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
        IncompatibleDatabase,
        KeyConflict,
        LocalProtocolError,
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
    from agentos.core.ports import AgentAnswer, AgentRequest
    from agentos.handles import AsyncTask
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
            "connect": "agentos.client",
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
    "ClusterUnreachable",
    "ConfigError",
    "EchoAgent",
    "Epoch",
    "FunctionAgent",
    "GraphError",
    "Host",
    "IncompatibleDatabase",
    "KeyConflict",
    "Limits",
    "LocalProtocolError",
    "OpenAIAgent",
    "Overloaded",
    "RemoteProtocolError",
    "ResultTimeout",
    "StorageError",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotFound",
    "UnissuedEpoch",
    "UnusableAnswer",
    "agent",
    "connect",
]
