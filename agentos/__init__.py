"""Agent OS: durable coordination for large clusters of AI agents."""

from agentos.agents.echo import EchoAgent
from agentos.agents.function import FunctionAgent, agent
from agentos.agents.openai import OpenAIAgent
from agentos.blocking import Client, Task
from agentos.client import AsyncClient, connect
from agentos.cluster import Cluster, Host
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
