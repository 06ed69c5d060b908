"""The house rules of docs/architecture.md, held by parsing the sources (TigerBeetle's `tidy.zig`).

Each rule is a function from the sources to a list of faults. It is run on this repository, where it
must find none, and on a few lines that break it, where it must find them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

Sources = Mapping[str, str]
"""The text of each module, by its import name; a package is named `agentos.core.__init__`."""

ROOT = Path(__file__).parents[1]
HOUSE = {"agentos": "agentos", "transports": "agentos.transports", "storage": "agentos.storage"}
"""Where setup.py takes each package from."""

ARROWS: Mapping[str, frozenset[str]] = {
    "core": frozenset({"core"}),
    "transports": frozenset({"core", "transports"}),
    "storage": frozenset({"core", "storage"}),
    "answers": frozenset({"core"}),
    "schemas": frozenset({"core", "answers"}),
    "agents": frozenset({"core", "answers", "agents"}),
    "registry": frozenset({"core"}),
    "runtime": frozenset({"core", "answers", "schemas", "registry", "runtime"}),
    "simulation": frozenset({"core", "simulation", "storage"}),
    "loadtest": frozenset({"core", "client", "handles", "loadtest"}),
}
"""What a room may import. Rooms that are not here may import all but the adapters and the CLI."""

ADAPTERS = frozenset({"transports", "storage"})
KNOW_ADAPTERS = frozenset({*ADAPTERS, "registry", "cluster", "host", "simulation", "testing"})

PURE = frozenset(
    {
        "__future__",
        "abc",
        "bisect",
        "collections",
        "contextlib",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "msgspec",
        "operator",
        "re",
        "textwrap",
        "types",
        "typing",
        "zlib",
    }
)
"""All that the core may import from outside: nothing with threads, sockets, clocks, files, chance."""

IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "compile", "__import__"})
MUTABLE_CALLS = frozenset(
    {
        "list",
        "dict",
        "set",
        "bytearray",
        "defaultdict",
        "deque",
        "Counter",
        "OrderedDict",
        "count",
        "local",
        "Lock",
        "RLock",
        "Event",
        "Queue",
        "SimpleQueue",
        "Context",
    }
)
READ_ONLY = frozenset({"Final", "Mapping", "Sequence", "Set", "ClassVar"})
LONGEST_FILE = 400


def read_sources() -> dict[str, str]:
    """Every module that is installed."""
    sources = {}
    for folder, package in HOUSE.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            sources[".".join((package, *parts))] = path.read_text(encoding="utf-8")
    return sources


def room(module: str) -> str:
    """The part of the house that a module is in: `agentos.core.graph` is in `core`."""
    return module.partition(".")[2].partition(".")[0]


def imports(module: str, source: str, known: Sources) -> Iterator[str]:
    """The full names of the modules that this one imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known or f"{inner}.__init__" in known else base


def top_level_imports(module: str, source: str, known: Sources) -> Iterator[str]:
    """The modules that must be there before this one can be imported."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(module, ast.unparse(node), known)


# -- the rules -------------------------------------------------------------------------------------


def against_the_arrows(sources: Sources) -> list[str]:
    """Imports that point up, or sideways from one adapter to another."""
    faults = []
    for module, source in sources.items():
        here = room(module)
        for target in imports(module, source, sources):
            there = room(target)
            if target.partition(".")[0] != "agentos" or here == "__init__":
                continue
            if here in ARROWS and there not in ARROWS[here]:
                faults.append(f"{module} imports {target}: {here} may not know {there}")
            if there in ADAPTERS and here not in KNOW_ADAPTERS:
                faults.append(f"{module} imports {target}: only the registry chooses adapters")
            if there == "cli" and here not in {"cli", "__main__"}:
                faults.append(f"{module} imports {target}: nobody is above the command line")
    return faults


def impure_core(sources: Sources) -> list[str]:
    """What in the core means threads, sockets, clocks, files, chance or logging."""
    faults = []
    for module, source in sources.items():
        if room(module) != "core":
            continue
        faults += [
            f"{module} imports {target}: not pure"
            for target in imports(module, source, sources)
            if target.partition(".")[0] not in PURE | {"agentos"}
        ]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
                faults.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}()")
            # The ports declare what agents offer; nothing in the core runs it.
            if isinstance(node, ast.AsyncFunctionDef) and module != "agentos.core.ports":
                faults.append(f"{module}:{node.lineno} is asynchronous")
    return faults


def plain_names(sources: Sources) -> list[str]:
    """Imports of `transports` or `storage` as top-level packages: they are installed inside ours."""
    return [
        f"{module} imports plain {target}"
        for module, source in sources.items()
        for target in imports(module, source, sources)
        if target.partition(".")[0] in ADAPTERS
    ]


def import_cycles(sources: Sources) -> list[str]:
    """Modules that must each be imported before the other."""
    needed = {}
    for module, source in sources.items():
        targets = set(top_level_imports(module, source, sources))
        packages = {f"{target}.__init__" for target in targets}
        needed[module] = (targets | packages) & sources.keys() - {module}
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def long_files(sources: Sources) -> list[str]:
    """Files that nobody sees at once."""
    lengths = {module: source.count("\n") for module, source in sources.items()}
    return [f"{module}: {n} lines" for module, n in lengths.items() if n >= LONGEST_FILE]


def module_state(sources: Sources) -> list[str]:
    """What a module can change behind its users' backs."""
    faults = []
    for module, source in sources.items():
        tree = ast.parse(source)
        faults += [
            f"{module}:{node.lineno} has a global statement"
            for node in ast.walk(tree)
            if isinstance(node, ast.Global)
        ]
        for node in tree.body:
            if isinstance(node, ast.Assign):
                names, constant = node.targets, False
            elif isinstance(node, ast.AnnAssign):
                names, constant = [node.target], _outer_name(node.annotation) in READ_ONLY
            else:
                continue
            constant = constant or all(_is_constant(name) for name in names)
            if not constant and node.value is not None and _is_mutable(node.value):
                faults.append(f"{module}:{node.lineno} keeps mutable state: {ast.unparse(node)}")
    return faults


def compiled_modules() -> set[str]:
    """What setup.py has compiled, by import name."""
    body = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
    (table,) = (
        node.value
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    )
    parts = ast.literal_eval(table)
    return {f"agentos.{part}.{name}" for part, names in parts.items() for name in names.split()}


def compiled_records(sources: Sources) -> list[str]:
    """Records in modules that are compiled: mypyc silently drops `frozen`, `tag` and the like."""
    return [
        f"{module}:{node.lineno}: {node.name} is a {ast.unparse(base)}"
        for module in sorted(compiled_modules() & sources.keys())
        for node in ast.walk(ast.parse(sources[module]))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base).rpartition(".")[2] in {"Struct", "Message"}
    ]


def _outer_name(annotation: ast.expr) -> str:
    while isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    return ast.unparse(annotation).rpartition(".")[2]


def _is_constant(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and (
        target.id.isupper() or target.id in {"__all__", "__slots__"}
    )


def _is_mutable(value: ast.expr) -> bool:
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    if isinstance(value, ast.Call):
        return _outer_name(value.func) in MUTABLE_CALLS
    return isinstance(value, displays)


# -- on this repository ----------------------------------------------------------------------------

RULES: Mapping[Callable[[Sources], list[str]], Mapping[str, str]] = {
    against_the_arrows: {
        "agentos.core.a": "from agentos.runtime import wire",
        "agentos.core.b": "def f():\n    import agentos.config",
        "agentos.transports.c": "from agentos.storage.models import Task",
        "agentos.storage.d": "from ..transports import zeromq",
        "agentos.agents.e": "from agentos import client",
        "agentos.runtime.f": "import agentos.cluster",
        "agentos.client": "from agentos.transports.zeromq import ZeroMQTransport",
        "agentos.config": "from agentos.cli import main",
    },
    impure_core: {
        f"agentos.core.{name}": f"import {name}"
        for name in (
            "time",
            "threading",
            "random",
            "socket",
            "os",
            "logging",
            "subprocess",
            "asyncio",
        )
    }
    | {
        "agentos.core.a": "from secrets import token_hex",
        "agentos.core.b": "def f():\n    import structlog",
        "agentos.core.c": "open('x')",
        "agentos.core.d": "async def f(): ...",
    },
    plain_names: {
        "agentos.cluster": "import transports.zeromq",
        "tests.x": "from storage import models",
    },
    compiled_records: {
        "agentos.core.rows": "class A(msgspec.Struct, frozen=True): ...",
        "agentos.runtime.peers": "class B(Message): ...",
    },
    import_cycles: {"agentos.x": "from agentos import y", "agentos.y": "import agentos.x"},
    long_files: {"agentos.x": "\n" * 400},
    module_state: {
        "agentos.a": "cache = {}",
        "agentos.b": "_seen: set[str] = set()",
        "agentos.c": "import threading\n_lock = threading.Lock()",
        "agentos.d": "x = 1\ndef f():\n    global x\n    x = 2",
    },
}
"""Each rule, with modules that break it."""

ALLOWED: Mapping[str, str] = {
    "agentos.core.a": "import re\nfrom agentos.core import b\n_X = {1: 2}\n_y: Mapping[str, int] = {}",
    "agentos.core.b": "import msgspec\n__all__ = ['c']\nfrom collections.abc import Mapping\nz = 1",
    "agentos.transports.c": "import zmq\nfrom agentos.core.a import b\nfrom agentos.transports import d",
    "agentos.transports.d": "from typing import Final\nkinds: Final = {}",
    "agentos.runtime.__init__": "",
    "agentos.cluster": "from agentos.storage import sqlite\nfrom agentos import runtime",
    "agentos.cli": "from agentos import cluster, runtime",
    "agentos.__init__": "from agentos.cli import main\nfrom agentos.storage import Database",
}
"""Modules that no rule has anything against."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule: Callable[[Sources], list[str]]) -> None:
    """No module breaks this rule of the house."""
    assert rule(read_sources()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule: Callable[[Sources], list[str]]) -> None:
    """The rule itself works: it finds every violation planted for it, and nothing else."""
    assert rule(ALLOWED) == []
    planted = RULES[rule]
    if rule is import_cycles:
        assert rule(planted) == ["agentos.x <- agentos.y <- agentos.x"]
    else:
        for module, source in planted.items():
            assert len(rule({module: source})) == 1, f"not found: {module}: {source}"


def test_nobody_imports_the_folders_by_their_names() -> None:
    """Tests, examples and benchmarks too import `agentos.transports`, never plain `transports`."""
    folders = ("tests", "examples", "benchmarks", "bench")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources = {f"{path.relative_to(ROOT)}": path.read_text(encoding="utf-8") for path in paths}
    assert plain_names(sources) == []


def test_the_core_imports_nothing_but_itself_and_msgspec() -> None:
    """What the core imports from outside is the standard library and the one decoding library."""
    assert {"msgspec", *sys.stdlib_module_names} >= PURE
    outside = {
        target.partition(".")[0]
        for module, source in read_sources().items()
        if room(module) == "core"
        for target in imports(module, source, read_sources())
    }
    assert outside - sys.stdlib_module_names == {"agentos", "msgspec"}


def test_what_is_compiled_is_there() -> None:
    """Every module that setup.py has compiled exists."""
    assert compiled_modules() <= read_sources().keys()
