"""What a peer may send whom: the whole protocol as one table.

A message that is not in the table for the roles of its two ends is refused where it enters a
process, before anything decodes its body (`RemoteProtocolError`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from agentos.core import messages as m

LINK, CLIENT, GATEWAY, STORE, REGION, PROXY, AGENTS, ACTOR = (
    "link", "client", "gateway", "store", "region", "proxy", "agents", "actor",
)  # fmt: skip

Roles = tuple[str, ...]

_ANYBODY: Roles = (CLIENT, GATEWAY, STORE, REGION, PROXY, ACTOR)

_TABLE: Sequence[tuple[type[m.Message], Roles, Roles]] = (
    # between the switches of one connection
    (m.Hello, (CLIENT, GATEWAY, REGION, PROXY, ACTOR), (LINK,)),
    (m.Welcome, (LINK,), (LINK,)),
    (m.Bye, (CLIENT, GATEWAY, REGION, PROXY, ACTOR), (LINK,)),
    (m.Ping, (*_ANYBODY, LINK), (LINK,)),
    (m.Pong, (LINK,), (LINK,)),
    # a client and the gateway
    (m.Submit, (CLIENT, ACTOR), (GATEWAY,)),
    (m.Submitted, (GATEWAY,), (CLIENT, ACTOR)),
    (m.Cancel, (CLIENT, ACTOR), (GATEWAY,)),
    (m.Cancelled, (GATEWAY,), (CLIENT, ACTOR)),
    (m.Cancelled, (STORE,), (GATEWAY,)),
    (m.Watch, (CLIENT,), (GATEWAY,)),
    (m.Watch, (GATEWAY,), (REGION,)),
    (m.Watch, (REGION,), (PROXY,)),
    (m.Unwatch, (CLIENT,), (GATEWAY,)),
    (m.Unwatch, (GATEWAY,), (REGION,)),
    (m.Unwatch, (REGION,), (PROXY,)),
    (m.Event, (GATEWAY, REGION, PROXY), (CLIENT,)),
    (m.GetCluster, (CLIENT, ACTOR), (GATEWAY,)),
    (m.ClusterInfo, (GATEWAY,), (CLIENT, ACTOR)),
    (m.Refused, (*_ANYBODY, LINK), (*_ANYBODY, LINK)),
    # reads
    (m.GetTask, (CLIENT, ACTOR, GATEWAY), (STORE,)),
    (m.TaskInfo, (STORE,), (CLIENT, ACTOR, GATEWAY)),
    (m.GetProgress, (CLIENT, ACTOR, PROXY), (STORE,)),
    (m.Progress, (STORE,), (CLIENT, ACTOR, PROXY)),
    (m.ListTasks, (CLIENT, ACTOR), (STORE,)),
    (m.TaskList, (STORE,), (CLIENT, ACTOR)),
    # writes
    (m.CreateTask, (GATEWAY,), (STORE,)),
    (m.TaskCreated, (STORE,), (GATEWAY,)),
    (m.Claim, (GATEWAY, REGION), (STORE,)),
    (m.Claimed, (STORE,), (GATEWAY, REGION)),
    (m.Run, (STORE,), (PROXY,)),
    (m.Record, (PROXY,), (STORE,)),
    (m.Recorded, (STORE,), (PROXY,)),
    (m.CancelTask, (GATEWAY,), (STORE,)),
    (m.FindTasks, (GATEWAY, REGION), (STORE,)),
    (m.TasksFound, (STORE,), (GATEWAY, REGION)),
    (m.CountTasks, (GATEWAY,), (STORE,)),
    (m.TaskCounts, (STORE,), (GATEWAY,)),
    # gateway and region
    (m.Assign, (GATEWAY,), (REGION,)),
    (m.Declined, (REGION,), (GATEWAY,)),
    (m.RegionBeat, (REGION,), (GATEWAY,)),
    (m.Heard, (GATEWAY,), (STORE,)),
    (m.Heard, (STORE,), (GATEWAY,)),
    # region and proxy
    (m.Ended, (PROXY,), (REGION,)),
    (m.Ended, (REGION, STORE), (GATEWAY,)),
    (m.Ended, (GATEWAY,), (CLIENT, ACTOR)),
    (m.Dropped, (PROXY,), (REGION,)),
    (m.Stop, (GATEWAY,), (REGION,)),
    (m.Stop, (REGION,), (PROXY,)),
    (m.Yield, (REGION,), (PROXY,)),
    (m.ProxyBeat, (PROXY,), (REGION,)),
    (m.Rouse, (REGION, LINK), (PROXY,)),
    (m.PeerDown, (REGION,), (PROXY,)),
    # calls
    (m.Place, (PROXY,), (REGION,)),
    (m.Call, (PROXY, REGION), (PROXY,)),
    (m.Placed, (REGION,), (PROXY,)),
    (m.CallRefused, (REGION, PROXY), (PROXY,)),
    (m.CallResult, (PROXY, AGENTS), (PROXY,)),
    (m.AbortCalls, (PROXY,), (PROXY,)),
    # actors of the user's own
    (m.Say, _ANYBODY, (CLIENT, ACTOR)),
)
"""Each of these roles may send this kind of message to each of those; some kinds have several rows."""

ROUTES: Mapping[type[m.Message], frozenset[tuple[str, str]]] = {
    kind: frozenset(
        way
        for one, senders, targets in _TABLE
        if one is kind
        for way in itertools.product(senders, targets)
    )
    for kind, _, _ in _TABLE
}
"""Who may send each kind of message to whom, as pairs of roles."""

REMEMBERED: Final = 8_192
"""Triples of kind, sender and receiver that `Permits` remembers before it begins anew."""


def kind_of(message: type[m.Message]) -> str:
    """The name of a message on the wire: `GetTask` travels as `get_task`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", message.__name__).lower()


KINDS: Mapping[str, type[m.Message]] = {kind_of(message): message for message in ROUTES}
"""What may be on a wire. `Tick`, `Drain`, `Invoke` and `Revoke` never leave their process."""


def allowed(kind: type[m.Message], sender: str, to: str) -> bool:
    """Whether the role of `sender` may send this kind of message to the role of `to`."""
    return (m.role_of(sender), m.role_of(to)) in ROUTES.get(kind, frozenset())


class Permits:
    """`allowed`, with a memory for what it has allowed: nearly all that comes is of few kinds."""

    def __init__(self) -> None:
        self._known: set[tuple[type[m.Message], str, str]] = set()

    def allow(self, kind: type[m.Message], sender: str, to: str) -> bool:
        """What `allowed` says."""
        key = (kind, sender, to)
        if key in self._known:
            return True
        if not allowed(kind, sender, to):
            return False
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known.add(key)
        return True


def may_command(proxy: str, region: str, envelope: m.Envelope) -> bool:
    """Whether a proxy listens to this: its own region, and other proxies for themselves alone."""
    message, sender = envelope.message, envelope.sender
    if sender == region:
        return True
    match m.role_of(sender):
        case "region" | "client":
            return False
        case "agents":
            return isinstance(message, m.CallResult) and message.proxy == proxy
        case "proxy" if m.region_of(sender) != region:
            return False
    if isinstance(message, m.CallResult):
        return message.proxy == sender
    return not isinstance(message, m.Call) or message.owner == sender
