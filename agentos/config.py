"""What a cluster is made of: `agentos.toml`, then the environment, then defaults.

```toml
[cluster]
regions = 1                        # how many, or their names: ["eu", "us"]
proxies = 2                        # in each region
gateways = 1                       # several share a store, a process of its own
listen = "tcp://127.0.0.1:7170"
data = "agentos-data"

[limits]
heartbeat_s = 0.5                  # any field of agentos.Limits

[agents.writer]
type = "openai"                    # or "function", "echo", "local"
model = "gpt-4o-mini"
only = ["r1/*"]                    # the proxies that offer it; all unless given
```

Everything that is wrong is said at once, each fault with its file, line and key.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agentos.core.errors import ConfigError
from agentos.core.fields import hint
from agentos.core.limits import Limits
from agentos.core.ports import Agent
from agentos.tomlfile import Faults, in_words, read_fields, read_toml
from agentos.topology import ClusterConfig, Name, Seconds, Text

DEFAULT_FILE = "agentos.toml"

_IMPORT_PATH = re.compile(r"[\w.]+:[\w.]+")

_Positive = Annotated[int, Meta(ge=1, le=1_000_000)]


class _AgentConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """What every agent's table may say. `only`: patterns of the proxies that offer it."""

    only: tuple[str, ...] = ("*",)


class OpenAIConfig(_AgentConfig, frozen=True, kw_only=True, tag="openai"):
    """A model behind an OpenAI-compatible endpoint; see `agentos.OpenAIAgent`."""

    model: Text
    base_url: Text | None = None
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: Seconds = 60.0
    max_concurrency: _Positive = 8
    max_tokens: _Positive | None = None
    temperature: float | None = None
    system: str | None = None
    extra_body: dict[str, Any] = {}


class FunctionConfig(_AgentConfig, frozen=True, kw_only=True, tag="function"):
    """A Python callable by its import path, `package.module:attribute`."""

    path: Text


class EchoConfig(_AgentConfig, frozen=True, kw_only=True, tag="echo"):
    """Answers its prompt, at once or after a while."""

    delay_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    max_concurrency: _Positive = 1024


class LocalConfig(_AgentConfig, frozen=True, kw_only=True, tag="local"):
    """The small model on this machine, served by whoever runs the proxies."""

    timeout_s: Seconds = 60.0
    max_concurrency: _Positive = 4
    max_tokens: _Positive = 512
    temperature: float | None = None
    system: str | None = None


AgentConfig = OpenAIConfig | FunctionConfig | EchoConfig | LocalConfig

_AGENT_TYPES: Mapping[str, type[AgentConfig]] = {
    "openai": OpenAIConfig,
    "function": FunctionConfig,
    "echo": EchoConfig,
    "local": LocalConfig,
}
_SECTIONS = ("cluster", "limits", "agents")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was configured. Made by `load`.

    Args:
        agents: by name.
        source: the file that it came from, "" if there was none.
    """

    cluster: ClusterConfig = ClusterConfig()
    limits: Limits = Limits()
    agents: Mapping[str, AgentConfig] = msgspec.field(
        default_factory=lambda: {"echo": EchoConfig()}
    )
    source: str = ""

    def offered_by(self, proxy: str) -> dict[str, AgentConfig]:
        """The agents that a proxy like `r1/2` offers, by name."""
        return {
            name: agent
            for name, agent in self.agents.items()
            if any(fnmatch.fnmatchcase(proxy, pattern) for pattern in agent.only)
        }

    def with_cluster(self, **changes: Any) -> Config:
        """A copy with some of the cluster's fields changed: those that are not None.

        Raises:
            ConfigError: a value cannot be used; the message names each.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        faults = Faults(lambda key: f"--{key.rpartition('.')[2]}")
        values = read_fields(given, ClusterConfig, "cluster", faults)
        _check_regions(values, faults)
        faults.done()
        return msgspec.structs.replace(
            self, cluster=msgspec.structs.replace(self.cluster, **values)
        )

    def with_grace(self, seconds: float | None) -> Config:
        """A copy whose roles have this long for an orderly stop; None leaves it as it is.

        Raises:
            ConfigError: it is not a number of seconds.
        """
        if seconds is None:
            return self
        if not 0 < seconds < math.inf:
            raise ConfigError(f"--grace must be seconds, more than 0, not {seconds:g}")
        return msgspec.structs.replace(
            self, limits=msgspec.structs.replace(self.limits, stop_grace_s=seconds)
        )

    def check_offers(self) -> Config:
        """Return this configuration if each agent is offered by one of its proxies.

        Raises:
            ConfigError: naming the agents that nobody would offer.
        """
        proxies = self.cluster.proxy_names
        offered = {name for proxy in proxies for name in self.offered_by(proxy)}
        if idle := [name for name in self.agents if name not in offered]:
            shown = ", ".join(proxies[:6]) + (", …" if len(proxies) > 6 else "")
            raise ConfigError(
                "\n".join(
                    f"{self.source}: agents.{name}.only matches none of the proxies {shown}"
                    for name in idle
                )
            )
        return self


def load(path: str | Path | None, env: Mapping[str, str], *, keys: bool = True) -> Config:
    """Read and check the configuration.

    Args:
        path: the file; if None, the one that `AGENTOS_CONFIG` names, or `agentos.toml` in the
            working folder if it exists. Without a file there is one agent, `echo`.
        env: the environment, whose `AGENTOS_DATA`, `AGENTOS_LISTEN` and so on, one for each key
            of `[cluster]`, win over the file.
        keys: whether the agents' API keys must be there: only who runs proxies needs them.

    Raises:
        ConfigError: whatever is wrong, all at once, each fault with its file, line and key.
    """
    file = _find(path, env)
    document, place = read_toml(file) if file else ({}, str)
    faults = Faults(place)
    for section, value in document.items():
        if section not in _SECTIONS:
            known = hint(section, _SECTIONS) or f"; known are {', '.join(_SECTIONS)}"
            faults.add(section, "unknown section" + known)
        elif not isinstance(value, dict):
            faults.add(section, f"must be a section: write [{section}]")
    tables = {name: document.get(name) for name in _SECTIONS}
    cluster, limits, agents = (t if isinstance(t, dict) else {} for t in tables.values())
    values = read_fields(cluster, ClusterConfig, "cluster", faults)
    winning = _from_environment(env, faults)
    where = "the environment variable AGENTOS_REGIONS" if "regions" in winning else ""
    values |= winning
    _check_regions(values, faults, where)
    found = Config(
        cluster=ClusterConfig(**values),
        limits=_limits(limits, faults),
        source=str(file) if file else "",
    )
    if "agents" in document:
        made = _agents(agents, env if keys else None, faults)
        found = msgspec.structs.replace(found, agents=made)
    faults.done()
    return found


def make_agents(agents: Mapping[str, AgentConfig], local_url: str = "") -> list[Agent]:
    """Make the agents that were configured.

    Args:
        agents: by name.
        local_url: where the local model answers, if one of them needs it.

    Raises:
        ConfigError: an import path leads nowhere, a key is missing, or a URL cannot be used; all
            of them at once.
    """
    made, faults = [], []
    for name, agent in agents.items():
        try:
            made.append(_make(name, agent, local_url))
        except ConfigError as error:
            faults.append(f"agents.{name}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    return made


def needs_local_model(agents: Iterable[AgentConfig]) -> bool:
    """Whether one of these agents is the small model on this machine."""
    return any(isinstance(agent, LocalConfig) for agent in agents)


def _make(name: str, agent: AgentConfig, local_url: str) -> Agent:
    # Imported when wanted: a role starts faster without the agents that it does not run.
    options = {key: value for key, value in msgspec.structs.asdict(agent).items() if key != "only"}
    match agent:
        case EchoConfig():
            from agentos.agents.echo import EchoAgent

            return EchoAgent(name, **options)
        case FunctionConfig():
            from agentos.agents.function import FunctionAgent

            return FunctionAgent.from_path(agent.path, name=name)
        case LocalConfig():
            from agentos.agents.local_model import MODEL
            from agentos.agents.openai import OpenAIAgent

            return OpenAIAgent(name, model=MODEL, base_url=local_url, api_key_env="", **options)
        case OpenAIConfig():
            from agentos.agents.openai import OpenAIAgent

            return OpenAIAgent(name, **options)


# -- reading ---------------------------------------------------------------------------------------


def _find(path: str | Path | None, env: Mapping[str, str]) -> Path | None:
    named = path or env.get("AGENTOS_CONFIG")
    if named:
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def _check_regions(values: dict[str, Any], faults: Faults, place: str = "") -> None:
    names = values.get("regions")
    if isinstance(names, tuple) and len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        faults.add("cluster.regions", f"names {', '.join(twice)} more than once", place)


def _from_environment(env: Mapping[str, str], faults: Faults) -> dict[str, Any]:
    values = {}
    for field in msgspec.structs.fields(ClusterConfig):
        variable = f"AGENTOS_{field.name.upper()}"
        text = env.get(variable, "").strip()
        if not text:
            continue
        value: Any = text
        if field.name == "regions" and not text.isdecimal():
            value = tuple(name.strip() for name in text.split(","))
        try:
            values[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as error:
            faults.add(
                f"cluster.{field.name}",
                f"cannot be {text!r}: {in_words(error)}",
                f"the environment variable {variable}",
            )
    return values


def _limits(table: Mapping[str, Any], faults: Faults) -> Limits:
    limits = Limits(**read_fields(table, Limits, "limits", faults))
    for key, reason in limits.faults():
        faults.add(key, reason)
    return limits


def _agents(
    table: Mapping[str, Any], env: Mapping[str, str] | None, faults: Faults
) -> dict[str, AgentConfig]:
    agents = {}
    for name, value in table.items():
        where = f"agents.{name}"
        found = len(faults)
        agent = _agent(value, name, where, faults)
        if agent is None or len(faults) > found:
            continue
        agents[name] = agent
        if env is not None and (variable := _missing_key(agent, env)):
            reason = f"set the environment variable {variable} to its key"
            faults.add(where, f'{reason}, or api_key_env = "" if it needs none')
    return agents


def _agent(value: Any, name: str, where: str, faults: Faults) -> AgentConfig | None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        faults.add(where, "an agent's name is 1 to 64 of A-Z a-z 0-9 . _ and -")
    if not isinstance(value, dict):
        faults.add(where, f"must be a section: write [{where}]")
        return None
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _AGENT_TYPES:
        known = ", ".join(_AGENT_TYPES)
        reason = f"is not a type of agent{hint(str(kind), _AGENT_TYPES)}" if "type" in value else ""
        said = f"{kind!r} {reason}" if reason else "is missing"
        faults.add(f"{where}.type", f"{said} (known are {known})")
        return None
    options = {key: item for key, item in value.items() if key != "type"}
    values = read_fields(options, _AGENT_TYPES[kind], where, faults)
    if kind == "function" and "path" in values and not _IMPORT_PATH.fullmatch(values["path"]):
        faults.add(f"{where}.path", f"write package.module:function, not {values['path']!r}")
    try:
        return _AGENT_TYPES[kind](**values)
    except TypeError:  # something required is missing, which is noted
        return None


def _missing_key(agent: AgentConfig, env: Mapping[str, str]) -> str:
    """The environment variable that should hold the agent's key, if it does not."""
    if not isinstance(agent, OpenAIConfig) or not agent.api_key_env:
        return ""
    from agentos.agents.openai import is_loopback

    if agent.base_url and is_loopback(agent.base_url):
        return ""
    return "" if env.get(agent.api_key_env, "").strip() else agent.api_key_env
