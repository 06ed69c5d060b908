"""What the documents say is what the code does."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

from agentos.core import errors
from agentos.core.routes import ROUTES, kind_of
from agentos.runtime import refs, uplink

ROOT = Path(__file__).parent.parent
ORDER = ("link", "client", "gateway", "store", "region", "proxy", "agents", "actor")


def test_the_table_of_messages_is_the_routing_table() -> None:
    """docs/architecture.md lists every kind of message with who may send it to whom."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = {
        kind: (senders, targets)
        for kind, senders, targets in re.findall(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text)
        if kind in {kind_of(message) for message in ROUTES}
    }
    for message, pairs in ROUTES.items():
        expected = tuple(_roles({pair[i] for pair in pairs}) for i in (0, 1))
        assert table[kind_of(message)] == expected, kind_of(message)


def _roles(roles: set[str]) -> str:
    return "anybody" if len(roles) >= 6 else ", ".join(sorted(roles, key=ORDER.index))


def test_the_refusals_of_the_protocol_are_those_of_the_code() -> None:
    """docs/protocol.md names only codes that exist."""
    text = (ROOT / "docs/protocol.md").read_text()
    section = text.split("## Refusals")[1].split("##")[0]
    codes = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    known = {
        value.code
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.AgentOSError)
    }
    known |= {uplink.HELLO_FIRST, refs.NO_SUCH_ACTOR, refs.RemoteActorError.code}
    assert codes <= known
    assert len(codes) >= 10


def test_every_dependency_is_explained() -> None:
    """docs/dependencies.md gives each dependency a line."""
    text = (ROOT / "docs/dependencies.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    names = [*re.findall(r'^\s+"([a-z-]+)>=', project, re.MULTILINE), "xllamacpp"]
    assert len(names) > 10
    assert [name for name in names if name not in text] == []


def test_links_between_documents_lead_somewhere() -> None:
    """No document points at a file that is not there."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_names_in_documents_can_be_imported() -> None:
    """What a document calls `agentos.something` is a module, or a name in one."""
    names = {
        name
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for name in re.findall(r"`(agentos(?:\.\w+)+)`", document.read_text())
        if name.rpartition(".")[2] not in {"toml", "db"}
    }
    assert len(names) >= 5
    for name in names:
        pkgutil.resolve_name(name)  # raises what says which part is not there
