"""The package as it installs: from a wheel, outside the checkout."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import agentos

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree and unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("agentos", "transports", "storage"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run(
        [*command, "--no-deps", "--wheel-dir", str(folder), str(tree)], check=True, timeout=110
    )
    (wheel,) = folder.glob("agentos_cluster-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, code: str) -> str:
    """What Python prints for `code`, with the wheel before everything else, away from the tree."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.plain
@pytest.mark.timeout(180)
def test_the_wheel_holds_every_package_and_says_that_it_is_typed(installed: Path) -> None:
    """`pip install agentos-cluster` brings all of it, under `agentos` alone."""
    tree = {f"agentos/{p.relative_to(ROOT / 'agentos')}" for p in (ROOT / "agentos").rglob("*.py")}
    for name in ("transports", "storage"):
        tree |= {f"agentos/{p.relative_to(ROOT)}" for p in (ROOT / name).rglob("*.py")}
    wheel = {str(p.relative_to(installed)) for p in installed.rglob("*.py")}
    assert wheel == tree
    assert (installed / "agentos/py.typed").exists()
    assert not (installed / "transports").exists()
    assert not (installed / "storage").exists()


@pytest.mark.plain
@pytest.mark.timeout(180)
def test_a_cluster_runs_from_the_wheel_alone(installed: Path) -> None:
    """What is installed works: transports and storage are found through their entry points."""
    code = (
        "import agentos, sys\n"
        "from agentos import Cluster, EchoAgent\n"
        "graph = {'nodes': {'a': {'agent': 'echo', 'prompt': 'hi'}}}\n"
        "with Cluster([EchoAgent()], listen='tcp://127.0.0.1:*') as c, c.client() as client:\n"
        "    print(client.submit(graph).result(20))\n"
        "print(agentos.__file__)\n"
        "print(sorted({'transports', 'storage'} & set(sys.modules)))\n"
    )
    output, file, plain = run(installed, code).splitlines()[-3:]
    assert output == "hi"
    assert Path(file).is_relative_to(installed)
    assert plain == "[]", "nothing is ever imported as plain `transports` or `storage`"


@pytest.mark.plain
@pytest.mark.timeout(180)
def test_the_command_is_there(installed: Path) -> None:
    """The distribution is `agentos-cluster`, the import `agentos`, the command `agentos`."""
    code = (
        "from importlib.metadata import distribution\n"
        "d = distribution('agentos-cluster')\n"
        "print([p.value for p in d.entry_points if p.group == 'console_scripts'])\n"
        "print(sorted(d.metadata.get_all('Provides-Extra')))\n"
    )
    scripts, extras = run(installed, code).splitlines()
    assert scripts == "['agentos.cli:main']"
    assert extras == "['dev', 'load', 'local']"


def test_the_public_names_are_these() -> None:
    """A name is added to or taken from the public face on purpose only."""
    assert sorted(agentos.__all__) == list(agentos.__all__)
    assert set(agentos.__all__) == {
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
    }
    assert all(hasattr(agentos, name) for name in agentos.__all__)


HEAVY = frozenset(
    {"asyncio", "jsonschema", "matplotlib", "openai", "peewee", "psutil", "pykka", "rich"}
    | {"sqlite3", "structlog", "typer", "zmq"}
)
"""What takes long to import, or much memory."""


def heavy(code: str) -> set[str]:
    """Which of the heavy modules are there after `code` in a new interpreter."""
    show = f"import sys\n{code}\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import agentos` is paid for when something of it is used."""
    assert heavy("import agentos, agentos.core.errors") == set()
    assert heavy("from agentos import GraphError, Epoch, Limits, OpenAIAgent") == {"asyncio"}
    assert not heavy("from agentos import Client") & {"openai", "peewee", "jsonschema", "zmq"}


@pytest.mark.parametrize("role", ["gateway", "region", "proxy"])
def test_a_role_imports_only_what_it_runs(role: str) -> None:
    """A process of `agentos up` has neither the command line nor clients of models in it."""
    found = heavy(f"from agentos import role\nrole.prepare({role!r})")
    # structlog brings asyncio along
    assert found <= {"asyncio", "pykka", "structlog", "zmq"}


def test_up_imports_no_role() -> None:
    """`agentos up` itself computes little before the first role starts."""
    found = heavy("from agentos.cli import roles\nfrom agentos import supervisor")
    assert not found & {"openai", "peewee", "pykka", "zmq", "jsonschema", "matplotlib"}


def test_the_names_have_homes() -> None:
    """Every public name is what its own module defines, is listed, and no other name is made up."""
    for name in agentos.__all__:
        home = vars(agentos)["_HOMES"][name]
        assert getattr(import_module(home), name) is getattr(agentos, name)
    assert set(agentos.__all__) == set(vars(agentos)["_HOMES"]) <= set(dir(agentos))
    assert not hasattr(agentos, "no_such_name")


def test_type_checkers_see_the_same_names() -> None:
    """What is imported when it is used is declared for tools that never run it, with its home."""
    (block,) = [
        n for n in ast.parse(Path(agentos.__file__).read_text()).body if isinstance(n, ast.If)
    ]
    declared = {
        name.name: line.module
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    assert declared == vars(agentos)["_HOMES"]
