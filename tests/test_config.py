"""The configuration: what it means, and what is said of everything that is wrong with it."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.agents.echo import EchoAgent
from agentos.agents.function import FunctionAgent
from agentos.agents.openai import OpenAIAgent
from agentos.config import (
    AgentConfig,
    Config,
    EchoConfig,
    OpenAIConfig,
    load,
    make_agents,
    needs_local_model,
)
from agentos.core.errors import ConfigError
from agentos.tomlfile import TomlLines


def write(folder: Path, text: str) -> Path:
    file = folder / "agentos.toml"
    file.write_text(text)
    return file


def fault(folder: Path, text: str, env: dict[str, str] | None = None) -> str:
    """What is said of a configuration, with the file's folder left out."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), env or {})
    return str(caught.value).replace(f"{folder}/", "")


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file there is one agent, `echo`, on one region with two proxies."""
    monkeypatch.chdir(tmp_path)
    config = load(None, {})
    assert config.agents == {"echo": EchoConfig()}
    assert config.cluster.proxy_names == ["r1/1", "r1/2"]
    assert config.cluster.listen == "tcp://127.0.0.1:7170"
    assert config.source == ""


def test_everything(tmp_path: Path) -> None:
    """Every section and every type of agent is read."""
    file = write(
        tmp_path,
        """
        [cluster]
        regions = ["eu", "us"]
        proxies = 3
        data = "here"
        [limits]
        heartbeat_s = 1
        [agents.gpt]
        type = "openai"
        model = "gpt-4o-mini"
        extra_body = { top_p = 0.9 }
        only = ["eu/1", "us/*"]
        [agents.shout]
        type = "function"
        path = "textwrap:dedent"
        [agents.echo]
        type = "echo"
        delay_s = 0.5
        [agents.small]
        type = "local"
        """,
    )
    config = load(file, {"OPENAI_API_KEY": "sk-1"})
    assert config.cluster.region_names == ["eu", "us"]
    assert config.limits.heartbeat_s == 1.0
    assert isinstance(config.agents["gpt"], OpenAIConfig)
    assert set(config.offered_by("eu/1")) == {"gpt", "shout", "echo", "small"}
    assert set(config.offered_by("eu/2")) == {"shout", "echo", "small"}
    assert "gpt" in config.offered_by("us/3")
    assert needs_local_model(config.agents.values())


def test_agents_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table becomes an agent of its name; the local one asks the local server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    toml = {"f": "function", "e": "echo", "o": "openai", "l": "local"}
    config = Config(
        agents={
            name: _agent(kind, path="textwrap:dedent", model="gpt-4o-mini")
            for name, kind in toml.items()
        }
    )
    made = make_agents(config.agents, "http://127.0.0.1:1/v1")
    assert [agent.name for agent in made] == ["f", "e", "o", "l"]
    assert [type(agent) for agent in made] == [FunctionAgent, EchoAgent, OpenAIAgent, OpenAIAgent]


def _agent(kind: str, path: str, model: str) -> AgentConfig:
    extra = {"function": {"path": path}, "openai": {"model": model}}.get(kind, {})
    return msgspec.convert({"type": kind, **extra}, AgentConfig)


def test_agents_that_cannot_be_made() -> None:
    """Import paths that lead nowhere are named with their agents, all at once."""
    config = {
        "a": _agent("function", "no.such:thing", ""),
        "b": _agent("function", "textwrap:indnt", ""),
    }
    with pytest.raises(ConfigError) as caught:
        make_agents(config)
    assert "agents.a: no.such:thing: there is no module" in str(caught.value)
    assert "agents.b: textwrap:indnt" in str(caught.value)
    assert 'did you mean "indent"' in str(caught.value)


def test_several_gateways(tmp_path: Path) -> None:
    """Gateways have names of their own; several of them need a store apart, and one may have it."""
    text = "[cluster]\ngateways = 3\nmax_restarts = 9\nrestart_window_s = 30\n"
    cluster = load(write(tmp_path, text), {}).cluster
    assert cluster.gateway_names == ["main", "2", "3"]
    assert (cluster.store_apart, cluster.max_restarts, cluster.restart_window_s) == (True, 9, 30.0)
    cluster = load(write(tmp_path, ""), {"AGENTOS_STORE": "true"}).cluster
    assert cluster.gateway_names == ["main"]
    assert cluster.store_apart
    assert not load(write(tmp_path, ""), {}).cluster.store_apart
    assert "cluster.gateways: " in fault(tmp_path, "[cluster]\ngateways = 0\n")


def test_grace(tmp_path: Path) -> None:
    """`--grace` sets how long an orderly stop may take, and nothing else; it must be a time."""
    config = load(write(tmp_path, ""), {})
    assert config.with_grace(None) is config
    assert config.with_grace(0.5).limits.stop_grace_s == 0.5
    assert config.with_grace(0.5).limits.heartbeat_s == config.limits.heartbeat_s
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--grace must be seconds"):
            config.with_grace(wrong)


def test_the_environment_wins(tmp_path: Path) -> None:
    """Variables win over the file, which wins over the defaults."""
    file = write(tmp_path, '[cluster]\nproxies = 3\ndata = "file"\n')
    env = {"AGENTOS_DATA": "env", "AGENTOS_REGIONS": "eu, us", "AGENTOS_LISTEN": "ipc:///tmp/x"}
    cluster = load(file, env).cluster
    assert (cluster.data, cluster.proxies, cluster.listen) == ("env", 3, "ipc:///tmp/x")
    assert cluster.region_names == ["eu", "us"]
    assert load(file, {"AGENTOS_REGIONS": "3"}).cluster.region_names == ["r1", "r2", "r3"]
    assert load(None, {"AGENTOS_CONFIG": str(file)}).cluster.data == "file"


def test_regions_are_named_once(tmp_path: Path) -> None:
    """Only the names that are used count: those of the environment, where it gives some."""
    text = '[cluster]\nregions = ["a", "a"]\n'
    replaced = load(write(tmp_path, text), {"AGENTOS_REGIONS": "x,y"})
    assert replaced.cluster.region_names == ["x", "y"]
    said = "the environment variable AGENTOS_REGIONS: cluster.regions: names eu more than once"
    assert fault(tmp_path, text, {"AGENTOS_REGIONS": "eu,eu"}) == said


def test_options_win(tmp_path: Path) -> None:
    """What the command line says wins over both, and what it does not say changes nothing."""
    config = load(write(tmp_path, "[cluster]\nproxies = 3\n"), {}).with_cluster(
        regions=2, proxies=None
    )
    assert (config.cluster.regions, config.cluster.proxies) == (2, 3)
    with pytest.raises(ConfigError, match=r"--regions: cluster\.regions: expected"):
        config.with_cluster(regions=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[clster]\n", 'agentos.toml:1: clster: unknown section; did you mean "cluster"?'),
        ("[x]\n", "agentos.toml:1: x: unknown section; known are cluster, limits, agents"),
        ("cluster = 3", "agentos.toml:1: cluster: must be a section: write [cluster]"),
        (
            "[cluster]\n\nproxeis = 2\n",
            'agentos.toml:3: cluster.proxeis: unknown key; did you mean "proxies"?',
        ),
        (
            "[cluster]\nproxies = 'two'",
            "agentos.toml:2: cluster.proxies: expected `int`, got `str`",
        ),
        ("[cluster]\nproxies = 0", "agentos.toml:2: cluster.proxies: expected `int` >= 1"),
        (
            "[cluster]\nproxies = true",
            "agentos.toml:2: cluster.proxies: expected `int`, got `bool`",
        ),
        (
            '[cluster]\nregions = ["a", "b", "a"]',
            "agentos.toml:2: cluster.regions: names a more than once",
        ),
        (
            '[cluster]\nregions = ["a/b"]',
            "agentos.toml:2: cluster.regions: expected `str` matching",
        ),
        (
            "[limits]\nheartbeat = 1",
            'agentos.toml:2: limits.heartbeat: unknown key; did you mean "hea',
        ),
        ("[limits]\nheartbeat_s = nan", "agentos.toml:2: limits.heartbeat_s: must be a number"),
        (
            "[limits]\nsuspect_after = 1",
            "agentos.toml:2: limits.suspect_after: must be at least 2",
        ),
        (
            "[limits]\nretry_min_s = 5.0\nretry_max_s = 1.0",
            "agentos.toml:3: limits.retry_max_s: must not be less than limits.retry_min_s",
        ),
        (
            "[limits]\nbatch = 9\nmax_nodes = 10001",
            "agentos.toml:3: limits.max_nodes: must be at most 10000: it may only be lowered",
        ),
        (
            "[limits]\nbatch = 9\nmax_description_bytes = 1000001",
            "agentos.toml:3: limits.max_description_bytes: must be at most 1000000: it may only be lowered",
        ),
        (
            "[agents.w]\ntype = 'opnai'",
            "agentos.toml:2: agents.w.type: 'opnai' is not a type of agent; did you mean \"openai\"?",
        ),
        ("[agents.w]\nmodel = 'm'", "agentos.toml:1: agents.w.type: is missing (known are openai"),
        ("[agents.w]\ntype = 'openai'", "agentos.toml:1: agents.w: model is missing"),
        ("[agents.w]\ntype = 'function'", "agentos.toml:1: agents.w: path is missing"),
        (
            "[agents.w]\ntype = 'function'\npath = 'x'",
            "agentos.toml:3: agents.w.path: write package.module:function, not 'x'",
        ),
        (
            "[agents.w]\ntype = 'openai'\nmodel = 'm'",
            "agentos.toml:1: agents.w: set the environment variable OPENAI_API_KEY to its key",
        ),
        (
            "[agents.w]\ntype = 'openai'\nmodel = 'm'\napi_key_env = 'MINE'",
            "agentos.toml:1: agents.w: set the environment variable MINE to its key",
        ),
        ('[agents."a b"]\ntype = "echo"', "agentos.toml:1: agents.a b: an agent's name is 1 to 64"),
        ("[agents]\nw = 'echo'", "agentos.toml:2: agents.w: must be a section: write [agents.w]"),
        ("[cluster\n", "agentos.toml: is not TOML: "),
        ("[cluster]\nproxies = 1\nproxies = 2\n", "(at line 3, column 12)"),
    ],
)
def test_faults(tmp_path: Path, text: str, said: str) -> None:
    """A fault is said with its file, line and key, and with the way out where one is known."""
    assert said in fault(tmp_path, text)


def test_all_at_once(tmp_path: Path) -> None:
    """Everything that is wrong is said at once, one fault a line."""
    said = fault(
        tmp_path,
        "[cluster]\nproxeis = 1\n[limits]\nbatch = 0\n[agents.a]\ntype = 'x'\n[agents.b]\ntype='openai'",
        {"AGENTOS_PROXIES": "many"},
    )
    assert len(said.splitlines()) == 5
    assert "the environment variable AGENTOS_PROXIES: cluster.proxies: cannot be 'many'" in said


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("127.0.0.1.example", False),
        ("10.0.0.1", False),
        ("[::2]", False),
    ],
)
def test_the_key_of_an_endpoint_on_this_machine(
    host: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint on this machine needs no key; the configuration and the agent agree on which."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    text = f'[agents.w]\ntype = "openai"\nmodel = "m"\nbase_url = "http://{host}:8000/v1"\n'
    config = load(write(tmp_path, text), {}, keys=False)
    if local:
        assert load(write(tmp_path, text), {}) == config
        make_agents(config.agents)
    else:
        assert "set the environment variable OPENAI_API_KEY" in fault(tmp_path, text)
        with pytest.raises(ConfigError, match="set the environment variable OPENAI_API_KEY"):
            make_agents(config.agents)


def test_a_url_that_is_none(tmp_path: Path) -> None:
    """A base_url that cannot even be read is refused by the agent; the configuration goes on."""
    text = '[agents.w]\ntype = "openai"\nmodel = "m"\nbase_url = "http://[::1"\n'
    config = load(write(tmp_path, text), {"OPENAI_API_KEY": "sk-1"})
    with pytest.raises(ConfigError, match="base_url must be like"):
        make_agents(config.agents)


def test_no_key_needed(tmp_path: Path) -> None:
    """Whoever runs no agents needs no keys."""
    remote = '[agents.w]\ntype = "openai"\nmodel = "m"\n'
    assert "w" in load(write(tmp_path, remote), {}, keys=False).agents


def test_an_agent_that_nobody_offers(tmp_path: Path) -> None:
    """Patterns that match no proxy are refused: tasks would wait for ever."""
    text = '[agents.w]\ntype = "echo"\nonly = ["r7/1"]\n'
    config = load(write(tmp_path, text), {})
    with pytest.raises(
        ConfigError, match=r"agents\.w\.only matches none of the proxies r1/1, r1/2"
    ):
        config.check_offers()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, is a folder, or is not text is named with the reason."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "bytes.toml", {})


def test_lines() -> None:
    """A key's line is found in tables, dotted keys, quoted names, and not in multi-line strings."""
    lines = TomlLines(
        'a.b = 1\n[t."x.y"] # note\nk = """\nfake = 1\n"""\n\'q r\' = { in = 1 }\n[[list]]\nz = 1\n'
    )
    assert lines.of("a.b") == 1
    assert lines.of("t.x.y.k") == 3
    assert lines.of("t.x.y.fake") == 2
    assert lines.of("t.x.y.q r.in") == 6
    assert lines.of("list.z") == 8
    assert lines.of("nothing") == 0


@given(st.text(alphabet="abc[]\"'=.#{}\n 01-_", max_size=200))
def test_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever is in the file, it is read or refused with a ConfigError, and nothing else."""
    file = write(tmp_path_factory.getbasetemp(), text)
    with contextlib.suppress(ConfigError):
        load(file, {})
