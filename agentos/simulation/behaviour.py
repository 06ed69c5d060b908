"""The rules about what processes do: looked at with every message that is taken or sent.

The costs of a check are those of one message: each looks only at what the step touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.simulation.coverage import marks
from agentos.simulation.ledger import Change, Entry, Ledger, Violation, graph_of, needs_of
from agentos.simulation.links import Process
from agentos.simulation.port import World
from agentos.simulation.rules import RULES
from agentos.simulation.trace import describe

NEWS_S = 2.0
"""Virtual seconds within which an owner learns in a cluster that is well that it was replaced."""
QUIET_S = 6.0
"""Virtual seconds after the last trouble from which on nobody has a reason to suspect anybody."""


class Behaviour:
    """Watches a run.

    Args:
        world: the simulation.
        limits: the bounds that must be kept.
        offers: what each proxy offers.
        stalled: the processes that have been stopped for longer than their leases.
    """

    def __init__(
        self,
        world: World,
        limits: Limits,
        offers: Mapping[str, Mapping[str, int]],
        stalled: Collection[str],
    ) -> None:
        self.ledger = Ledger()
        self._stalled = stalled
        self._world = world
        self._limits = limits
        self._offers = offers
        self._leaving: Sequence[m.Send] = ()
        self._floor: dict[tuple[str, int], Epoch] = {}
        self._placed: dict[tuple[str, int], dict[str, set[str]]] = {}
        """By owner and task, and by row: where its owner knows the call to be."""
        self._unsure: dict[str, set[int]] = {}
        """Proxies that stood still for longer than a lease, and the tasks that they are sure of."""
        self._invoked: Counter[tuple[int, str]] = Counter()
        self._done: set[tuple[str, str]] = set()
        self._held: set[tuple[int, Epoch]] = set()
        """Claims whose owner was told of them, and has not handed them back."""
        self._taken: dict[type, Callable[[Process, Any], None]] = {
            m.Recorded: self._recorded,
            m.Stop: self._stopped,
            m.Run: self._given,
            m.Claimed: self._claimed,
            m.TasksFound: self._found,
            m.Ended: self._heard,
            m.TaskInfo: self._heard,
            m.Cancelled: self._heard,
            m.Submitted: self._acknowledged,
            m.Refused: self._refused,
            m.Placed: self._was_placed,
            m.CallResult: self._answered,
        }
        self._sent: dict[type, Callable[[Process, Any, str, m.Message], None]] = {
            m.Invoke: self._invoke,
            m.Place: self._place,
            m.AbortCalls: self._aborting,
            m.Record: self._record,
            m.Submitted: self._submitted,
            m.Ended: self._ended,
            m.Assign: self._assign,
            m.Run: self._run,
            m.Dropped: self._dropped,
            m.ProxyBeat: self._beat,
            m.Declined: lambda *_: self._world.note("declined"),
        }

    # -- entry points ----------------------------------------------------------------------------

    def step(self, process: Process, envelope: m.Envelope, sends: Sequence[m.Send]) -> None:
        """A machine has taken a message, and these of its messages leave."""
        message: Any = envelope.message
        self._leaving = sends
        if self._unsure and type(message) in {m.Run, m.Recorded}:
            self._unsure.get(process.address, set()).add(message.task_id)
        for send in sends:
            look = self._sent.get(type(send.message))
            if look is not None:
                look(process, send.message, send.to, message)
        taken = self._taken.get(type(message))
        if taken is not None:
            taken(process, message)
        if envelope.ref and type(message) is m.Ended:
            self._world.note("client_read_the_end")

    def committed(self, changes: Sequence[Change]) -> None:
        """A transaction is durable: every rule about the database, for each of its changes."""
        for change in changes:
            self._check(change)

    def done(self, client: str, job: str, ended: m.Ended) -> None:
        """A client's wait is over: exactly once, with the end that is recorded."""
        if (client, job) in self._done:
            _broken("one_terminal_event", f"{client} was told of the end of {job} again")
        self._done.add((client, job))
        self._same_end(client, ended.task_id, ended.state, ended.response)

    # -- commits ---------------------------------------------------------------------------------

    def _check(self, change: Change) -> None:
        task = change.task
        if task is None or isinstance(change.answer, m.Refused):
            return
        entry = self.ledger.get(task.task_id)
        if entry is None:
            self._created(change, task)
            return
        for rule in RULES:
            rule(change, entry)
        for mark in marks(change, entry):
            self._world.note(mark)
        self._note_claim(change, entry)
        for row in change.rows:
            if row is not None:
                entry.rows[row.node_id] = row
        if entry.task.epoch != task.epoch:
            entry.since = self._world.now
        entry.task = task

    def _created(self, change: Change, task: m.TaskInfo) -> None:
        question = change.question
        if not isinstance(question, m.CreateTask):
            _broken("tasks_are_created", f"task {task.task_id} came of {describe(question)}")
        if task.key is not None:
            known = self.ledger.keys.setdefault((task.user_id, task.key), task.task_id)
            if known != task.task_id:
                _broken("one_task_for_each_key", f"{task.key} is {known} and {task.task_id}")
        entry = Entry(task, graph_of(question.task_description), {}, {})
        self.ledger.tasks[task.task_id] = entry
        if task.region:
            entry.issued[task.epoch] = (question.claimant, task.region, task.owner)
        else:
            self._world.note("backlog_wait")

    def _note_claim(self, change: Change, entry: Entry) -> None:
        question, answer, task = change.question, change.answer, change.task
        assert task is not None, "looked at before"
        if not isinstance(question, m.Claim) or not isinstance(answer, m.Claimed):
            if task.state == "cancelled" and entry.task.state != "cancelled":
                entry.issued[task.epoch] = ("", "", "")
            return
        if not answer.granted or answer.epoch in entry.issued:
            return
        entry.issued[answer.epoch] = (question.claimant, question.region, question.owner)
        before = entry.task
        if question.scope == "regional":
            entry.claims += 1
        if before.owner and before.state == "running":
            self._has_a_reason(question, before)
            if question.scope == "regional":
                self._world.note("takeover_in_region")
            elif question.region and question.region != before.region:
                self._world.note("takeover_across_regions")
        if question.scope == "global" and not question.region:
            self._world.note("taken_back")

    def _has_a_reason(self, claim: m.Claim, before: m.TaskInfo) -> None:
        """Rule 6: in a cluster that has been well for long, nobody loses what it owns."""
        quiet_s = self._world.now - self._world.troubled_at
        if quiet_s > QUIET_S and (before.task_id, before.epoch) in self._held:
            text = (
                f"task {before.task_id} ({before.key}): {claim.claimant} takes it from "
                f"{before.owner}, {quiet_s:.1f} s after the last trouble"
            )
            _broken("no_needless_takeover", text)

    # -- what is taken ---------------------------------------------------------------------------

    def went_on(self, proxy: str) -> None:
        """A proxy stood still for longer than its lease: others may have its tasks by now."""
        self._unsure[proxy] = set()

    def began(self, process: str) -> None:
        """A process was started: it knows nothing, and doubts nothing."""
        self._unsure.pop(process, None)
        self._placed = {key: rows for key, rows in self._placed.items() if key[0] != process}
        self._floor = {key: floor for key, floor in self._floor.items() if key[0] != process}

    def _was_placed(self, process: Process, q: m.Placed) -> None:
        key = (process.address, q.task_id)
        unwanted = any(  # the word of its place came too late, and it is aborted at once
            s.to == q.proxy and isinstance(s.message, m.AbortCalls) and s.message.row == q.row
            for s in self._leaving
        )
        if not unwanted and q.epoch >= self._floor.get(key, q.epoch):
            self._placed.setdefault(key, {}).setdefault(q.row, set()).add(q.proxy)

    def _answered(self, process: Process, q: m.CallResult) -> None:
        self._placed.get((process.address, q.task_id), {}).pop(q.row, None)

    def _recorded(self, process: Process, q: m.Recorded) -> None:
        entry = self.ledger.get(q.task_id)
        issued = None if entry is None else entry.issued.get(q.epoch)
        if q.outcome == "stale" and issued is not None and issued[2] == process.address:
            self._raise_floor(process, q.task_id, q.epoch.next_regional())
            if process.address in self._stalled:
                self._world.note("zombie_owner_refused")

    def _stopped(self, process: Process, q: m.Stop) -> None:
        if process.role == "proxy":
            self._raise_floor(process, q.task_id, q.epoch)
            self._world.note("stopped_by_its_region")

    def _raise_floor(self, process: Process, task_id: int, floor: Epoch) -> None:
        """Rule 5, stale means stop: nothing more under older epochs, and nothing in flight."""
        key = (process.address, task_id)
        self._floor[key] = max(floor, self._floor.get(key, floor))
        if process.dying:
            return
        for call in self._world.running(process.address):
            if call.task_id == task_id and call.epoch < floor and call.owner == process.address:
                text = f"{process.address} was told that {call.epoch} is over; {call.row} runs on"
                _broken("stale_means_stop", f"task {task_id}: {text}")
        for row, proxies in self._placed.pop(key, {}).items():
            for proxy in proxies - {process.address}:
                for call in self._world.running(proxy):
                    mine = (call.task_id, call.row, call.owner) == (task_id, row, process.address)
                    if mine and call.epoch < floor:
                        text = f"{process.address} is refused and leaves {row} running at {proxy}"
                        _broken("stale_means_stop", f"task {task_id}: {text}")

    def _given(self, process: Process, q: m.Run) -> None:
        """A claim that arrives late starts what was stopped: the store has the last word."""
        floor = self._floor.get((process.address, q.task_id))
        if floor is not None and floor <= q.epoch:
            del self._floor[process.address, q.task_id]
        if q.saved:
            self._world.note("resumed_from_saved_rows")
        if not any(isinstance(send.message, m.Dropped) for send in self._leaving):
            self._held.add((q.task_id, q.epoch))

    def _claimed(self, process: Process, q: m.Claimed) -> None:
        if not q.granted and process.role == "region" and process.address in self._stalled:
            self._world.note("zombie_region_refused")

    def _found(self, process: Process, q: m.TasksFound) -> None:
        if process.role == "region" and q.tasks and process.incarnation > 1:
            self._world.note("region_adopted_tasks")

    def _acknowledged(self, process: Process, q: m.Submitted) -> None:  # noqa: ARG002
        if self.ledger.get(q.task_id) is None:
            _broken("acknowledged_is_stored", f"task {q.task_id} is not in the database")

    def _refused(self, process: Process, q: m.Refused) -> None:  # noqa: ARG002
        if q.code == "storage":
            self._world.note("storage_refused")

    def _heard(self, process: Process, q: m.Ended | m.TaskInfo | m.Cancelled) -> None:
        if process.role == "client" and q.state in m.TERMINAL:
            response = "" if isinstance(q, m.Cancelled) else q.response or ""
            self._same_end(process.address, q.task_id, q.state, response)

    def _same_end(self, client: str, task_id: int, state: str, response: str) -> None:
        entry = self.ledger.get(task_id)
        found = None if entry is None else entry.task
        if found is None or found.state != state or (response and response != found.response):
            recorded = "unknown" if found is None else found.state
            text = f"{client} heard that task {task_id} {state}; it is recorded as {recorded}"
            _broken("ends_are_recorded", text)

    # -- what is sent ----------------------------------------------------------------------------

    def _submitted(self, process: Process, q: m.Submitted, to: str, cause: m.Message) -> None:  # noqa: ARG002
        """Rule 2: no message announces what is not committed."""
        self._acknowledged(process, q)

    def _ended(self, process: Process, q: m.Ended, to: str, cause: m.Message) -> None:  # noqa: ARG002
        self._same_end(process.address, q.task_id, q.state, q.response)

    def _assign(self, process: Process, q: m.Assign, to: str, cause: m.Message) -> None:  # noqa: ARG002
        self._was_issued(process, q.task_id, q.epoch, 1, to)

    def _run(self, process: Process, q: m.Run, to: str, cause: m.Message) -> None:  # noqa: ARG002
        self._was_issued(process, q.task_id, q.epoch, 2, to)

    def _was_issued(self, process: Process, task_id: int, epoch: Epoch, who: int, to: str) -> None:
        entry = self.ledger.get(task_id)
        issued = None if entry is None else entry.issued.get(epoch)
        if issued is None or issued[who] != to:
            text = f"{process.address} hands task {task_id} to {to} under {epoch}: {issued}"
            _broken("claims_are_committed_first", text)

    def _dropped(self, process: Process, q: m.Dropped, to: str, cause: m.Message) -> None:  # noqa: ARG002
        """Rule 4: an owner whose write was applied, or was a duplicate, goes on."""
        self._held.discard((q.task_id, q.epoch))
        fine = isinstance(cause, m.Recorded) and cause.outcome != "stale"
        if fine and q.reason.startswith("refused"):
            text = f"{process.address} drops task {q.task_id} because of {describe(cause)}"
            _broken("owners_go_on", f"{text} ({q.reason})")

    def _place(self, process: Process, q: m.Place, to: str, cause: m.Message) -> None:  # noqa: ARG002
        self._may_start(process, q.call, cause)

    def _aborting(self, process: Process, q: m.AbortCalls, to: str, cause: m.Message) -> None:  # noqa: ARG002
        """What is told to abort a call may run it for as long as the word is on its way."""
        for row, proxies in self._placed.get((process.address, q.task_id), {}).items():
            if q.row in {"", row}:
                proxies.discard(to)

    def _record(self, process: Process, q: m.Record, to: str, cause: m.Message) -> None:  # noqa: ARG002
        floor = self._floor.get((process.address, q.task_id))
        if floor is not None and q.epoch < floor:
            text = f"{process.address} sends {describe(q)} after it was refused"
            _broken("stale_means_stop", text)

    def _may_start(self, process: Process, call: m.Call, cause: m.Message) -> None:
        if call.owner != process.address:
            return
        entry = self.ledger.get(call.task_id)
        if (
            entry
            and entry.started.setdefault(call.epoch, process.incarnation) < process.incarnation
        ):
            text = f"{process.address}, started anew, starts {call.row} of task {call.task_id}"
            _broken("one_process_for_each_epoch", f"{text} under {call.epoch}, as before")
        sure = self._unsure.get(process.address)
        in_line = isinstance(cause, m.CallResult)  # it had been started: it waited for a slot
        if sure is not None and call.task_id not in sure and not in_line:
            text = f"{process.address} stood still, and starts {call.row} of {call.task_id}"
            _broken("zombies_look_first", f"{text} before it knows that it may")
        floor = self._floor.get((process.address, call.task_id))
        if floor is not None and call.epoch < floor:
            text = f"{process.address} starts {call.row} of task {call.task_id} under {call.epoch}"
            _broken("stale_means_stop", text)

    def _invoke(self, process: Process, q: m.Invoke, to: str, cause: m.Message) -> None:  # noqa: ARG002
        """Rules 2, 5, 8 and 9, where they are about calls."""
        call = q.call
        self._may_start(process, call, cause)
        entry = self.ledger.get(call.task_id)
        if entry is None:
            _broken("acknowledged_is_stored", f"a call of task {call.task_id}, which is not stored")
        quiet_s = self._world.now - self._world.troubled_at
        known = self._world.now - entry.since > NEWS_S
        over = known and call.epoch < entry.task.epoch
        if quiet_s > QUIET_S and over and self._world.is_led(process.address):
            text = f"{call.row} of task {call.task_id} is called under {call.epoch}"
            _broken("zombies_stop_spending", f"{text}, {quiet_s:.1f} s after the last trouble")
        for row in needs_of(entry, call.row):
            if row not in entry.rows:
                text = f"{call.row} of task {call.task_id} starts before {row} is saved"
                _broken("persist_then_send", text)
        mine = call.owner == process.address and call.epoch == entry.task.epoch
        if mine and entry.task.state == "running" and call.row in entry.rows:
            text = f"{call.row} of task {call.task_id} is saved, and is asked again"
            _broken("finished_nodes_rest", text)
        self._invoked[call.task_id, call.row] += 1
        node = entry.graph.nodes[call.row.partition("/")[0]]
        most = (1 + entry.claims) * (1 + node.retries) + entry.excuses + self._world.troubles
        count = self._invoked[call.task_id, call.row]
        if count > most:
            text = f"{call.row} of task {call.task_id} was called {count} times, of {most} at most"
            _broken("calls_are_bounded", text)
        if call.attempt:
            self._world.note("call_repeated")
        if isinstance(cause, m.PeerDown):
            self._world.note("call_placed_again")
        running = [c for c in self._world.running(process.address) if c.agent == call.agent]
        if len(running) > self._offers[process.address][call.agent]:
            _broken("bounds", f"{process.address} runs {len(running)} calls to {call.agent}")

    def _beat(self, process: Process, q: m.ProxyBeat, to: str, cause: m.Message) -> None:  # noqa: ARG002
        """Rule 8: what a proxy says of itself is within its bounds."""
        most = sum(self._offers[process.address].values()) + self._limits.waiting_calls
        if len(q.claims) > self._limits.tasks_per_proxy or q.calls > most:
            _broken("bounds", f"{process.address} has {len(q.claims)} tasks, {q.calls} calls")


def _broken(rule: str, text: str) -> NoReturn:
    raise Violation(rule, text)
