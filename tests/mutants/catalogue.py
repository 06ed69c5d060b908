"""The mutants: for each rule of safety one way or more to break it in a line."""

from __future__ import annotations

from dataclasses import dataclass

FENCE = "tests/test_storage.py tests/test_storage_stateful.py"
MACHINES = "tests/test_takeover.py tests/test_drain.py tests/test_machines_together.py"


@dataclass(frozen=True)
class Mutant:
    """One broken rule.

    Args:
        rule: what is broken, in the words of the design.
        how: what the change does.
        file: where, from the root of the project.
        old: the text that stands there, once.
        new: what takes its place.
        tests: what may notice it when the simulator does not: a file or more for pytest.
    """

    rule: str
    how: str
    file: str
    old: str
    new: str
    tests: str = MACHINES


MUTANTS = (
    # -- the fence -------------------------------------------------------------------------------
    Mutant(
        "> to >= in the fence",
        "a row may be written again under the same epoch (model)",
        "storage/memory.py",
        "saved[row.node_id].epoch < epoch:",
        "saved[row.node_id].epoch <= epoch:",
        FENCE,
    ),
    Mutant(
        "> to >= in the fence",
        "a row may be written again under the same epoch (SQLite)",
        "storage/recording.py",
        "            if saved.get(row.node_id) != epoch:\n                saved[row.node_id] = epoch\n",
        "            if True:\n                self._rows('DELETE FROM Progress WHERE task_id = ? AND node_id = ?'"
        " ' RETURNING 1', (task_id, row.node_id))\n",
        FENCE,
    ),
    Mutant(
        "> to >= in the fence",
        "a row may be written again under the same epoch (SQLite, in one statement)",
        "storage/statements.py",
        "            ON CONFLICT (task_id, node_id) DO NOTHING\n",
        "            ON CONFLICT (task_id, node_id) DO UPDATE SET result = excluded.result\n",
        FENCE,
    ),
    Mutant(
        "no check against the task row",
        "a deposed owner may write (model)",
        "storage/memory.py",
        'if epoch < task.epoch or task.state == "cancelled":',
        'if task.state == "cancelled":',
        FENCE,
    ),
    Mutant(
        "no check against the task row",
        "a deposed owner may write (SQLite)",
        "storage/recording.py",
        '        if epoch < current or state == "cancelled":\n            return SaveOutcome("stale", current, state)\n        saved',
        '        if state == "cancelled":\n            return SaveOutcome("stale", current, state)\n        saved',
        FENCE,
    ),
    Mutant(
        "no check against the task row",
        "a deposed owner may write (SQLite, in one statement)",
        "storage/statements.py",
        "WHERE task_id = column1 AND global_epoch = column3 AND regional_epoch = column4\n",
        "WHERE task_id = column1 AND column3 + column4 > 0\n",
        FENCE,
    ),
    Mutant(
        "no check against the task row",
        "who knows the epoch may write without being the owner (SQLite, in one statement)",
        "storage/statements.py",
        "(owner = column6 OR column6 = '')",
        "(owner = column6 OR column6 <> 'nobody')",
        FENCE,
    ),
    Mutant(
        "no check against the task row",
        "a record that is not all new is written in part (SQLite)",
        "storage/recording.py",
        '                    self._execute("ROLLBACK TO added", ())\n',
        "",
        FENCE,
    ),
    Mutant(
        "terminal not absorbing",
        "an ended task may be written (SQLite, in one statement)",
        "storage/statements.py",
        "AND state = 'running' AND (owner",
        "AND (owner",
        FENCE,
    ),
    Mutant(
        "terminal not absorbing",
        "an ended task may be written (model)",
        "storage/memory.py",
        "        if task.ended or any(",
        "        if any(",
        FENCE,
    ),
    Mutant(
        "terminal not absorbing",
        "an ended task may be claimed (model)",
        "storage/memory.py",
        "        if task.ended:\n            return False, task\n        if task.epoch == claim.expected:\n            return True, self._change(\n                task,\n                epoch=epoch,\n                region=claim.region,",
        "        if task.epoch == claim.expected:\n            return True, self._change(\n                task,\n                epoch=epoch,\n                region=claim.region,",
        FENCE,
    ),
    Mutant(
        "terminal not absorbing",
        "an ended task may be claimed (SQLite)",
        "storage/statements.py",
        'regional_epoch = ? AND {unfinished}\n        """)\n        self.claim_regional',
        'regional_epoch = ?\n        """)\n        self.claim_regional',
        FENCE,
    ),
    Mutant(
        "claims are compare-and-set",
        "a claim need not expect the row's epoch (model)",
        "storage/memory.py",
        "        if task.ended or not claim.claimant or task.region != claim.claimant:\n            return False, task\n        if task.epoch == claim.expected:",
        "        if task.ended or not claim.claimant or task.region != claim.claimant:\n            return False, task\n        if task.epoch.global_epoch == claim.expected.global_epoch:",
        FENCE,
    ),
    Mutant(
        "claims are idempotent",
        "a claim whose answer was lost is not granted again (model)",
        "storage/memory.py",
        "        return holds and task.owner == claim.owner, task",
        "        return False, task",
        FENCE,
    ),
    Mutant(
        "duplicate is not stale",
        "an owner that repeats a write is told that it was replaced",
        "agentos/core/store.py",
        "            return self._recorded(q, done.outcome, done.epoch, done.state)",
        "            outcome = 'stale' if done.outcome == 'duplicate' else done.outcome\n            return self._recorded(q, outcome, done.epoch, done.state)",
        "tests/test_store_machine.py",
    ),
    Mutant(
        "a result is saved with its answers",
        "a node's result does not take along the answers that are not confirmed yet",
        "agentos/core/taskrun.py",
        "        together = [*ours, *rows, ",
        "        together = [*rows, ",
    ),
    # -- persist, then send ----------------------------------------------------------------------
    Mutant(
        "persist, then send",
        "what rests on an answer starts before the answer is saved",
        "agentos/core/taskrun.py",
        "if asks is None or node.unsaved or not self._may_start",
        "if asks is None or not self._may_start",
    ),
    Mutant(
        "persist, then send",
        "the store answers before it has committed",
        "agentos/runtime/actors.py",
        "            sends = machine.handle_all(all_of_them(), now)\n",
        "            sends = machine.handle_all(all_of_them(), now)\n            self._switch.send(turns.envelopes(self.address, sends))\n            sends = []\n",
        "tests/test_store_actor.py",
    ),
    # -- stale means stop ------------------------------------------------------------------------
    Mutant(
        "stale means stop",
        "calls in flight are not aborted",
        "agentos/core/taskrun.py",
        '        self._ctx.timers.cancel((self.task_id, ""))\n        return self.calls.abort()',
        '        self._ctx.timers.cancel((self.task_id, ""))\n        return []',
    ),
    Mutant(
        "stale means stop",
        "a refused owner goes on",
        "agentos/core/proxy.py",
        '        if answer.outcome == "stale":',
        '        if answer.outcome == "never":',
    ),
    Mutant(
        "stale means stop",
        "a region that comes back as a zombie lets its owners spend",
        "agentos/core/region.py",
        "for task_id, epoch in self._sweep.judge(held.items()):",
        "for task_id, epoch in list[tuple[int, Epoch]]():",
    ),
    Mutant(
        "suspicion is not death",
        "an owner that stood still goes on before it has checked its claims",
        "agentos/core/proxy.py",
        "        if before is None or now - before <= self._limits.suspicion_s:",
        "        if before is None or now >= before:",
    ),
    Mutant(
        "all or nothing",
        "records that go together are applied although one was not added",
        "storage/recording.py",
        "            if added != len(some):",
        "            if added > len(some):",
        "tests/test_storage_together.py",
    ),
    # -- the sweeper -----------------------------------------------------------------------------
    Mutant(
        "a sweeper repairs",
        "the gateway does not sweep",
        "agentos/core/gateway.py",
        "out += self._sweep(now) if settled else",
        "out += [] if settled else",
    ),
    Mutant(
        "a sweeper repairs",
        "the region does not sweep",
        "agentos/core/region.py",
        "                    self._sweep = self._sweep.next(self._incarnation, now)\n                    out += self._find(0)\n",
        "                    pass\n",
    ),
    Mutant(
        "a task's owner is alive, or it is replaced",
        "a region leaves a task with an owner that it knows to be dead",
        "agentos/core/region.py",
        "        if task.widowed or not self._proxies.alive(owner):",
        "        if task.widowed or not owner:",
        "tests/test_region.py",
    ),
    Mutant(
        "an epoch is one process's",
        "a repeated claim gives a task to whoever has its owner's name by then",
        "agentos/core/proxy.py",
        '        another = run.incarnation not in {"", self._incarnation}',
        "        another = False",
        "tests/test_proxy.py",
    ),
    Mutant(
        "nobody claims for another",
        "a new task may be given to a proxy of another region",
        "agentos/core/store.py",
        "own and (not q.owner or proxy_there)",
        "own",
        "tests/test_store_machine.py",
    ),
    # -- time ------------------------------------------------------------------------------------
    Mutant(
        "liveness on the monotonic clock",
        "heartbeats are judged by wall time",
        "agentos/core/liveness.py",
        "        stalled = self._last_check is not None and now - self._last_check > self._suspicion_s\n        self._last_check = now\n",
        '        now = __import__("time").time()\n        stalled = self._last_check is not None and now - self._last_check > self._suspicion_s\n        self._last_check = now\n',
        "tests/test_liveness.py tests/test_architecture.py",
    ),
    Mutant(
        "suspicion is not death",
        "nobody is ever suspected",
        "agentos/core/liveness.py",
        "            if now - peer.seen_at > (resting if peer.resting else busy)",
        "            if now < 0",
        "tests/test_liveness.py",
    ),
    Mutant(
        "who rests is asked before its silence counts",
        "nobody is roused",
        "agentos/core/fleet.py",
        "            if peer and not (peer.suspected or peer.beat.calls or peer.beat.claims)\n",
        "            if not peer\n",
        "tests/test_region_liveness.py tests/test_takeover.py",
    ),
    Mutant(
        "the dead of one cause are found together",
        "those that rest are not asked when somebody is suspected",
        "agentos/core/fleet.py",
        "                    peer.doubted = True\n",
        "                    pass\n",
        "tests/test_region_liveness.py tests/test_takeover.py",
    ),
    Mutant(
        "slow together is not dead together",
        "most of many that are silent are replaced at once",
        "agentos/core/liveness.py",
        "        return silent >= MANY and 2 * silent > living",
        "        return False",
        "tests/test_liveness.py",
    ),
    Mutant(
        "a zombie looks first",
        "after a pause an owner's own waiting calls are begun",
        "agentos/core/proxy.py",
        "        return checks + self._executor.put_off(self.address)",
        "        return checks",
        "tests/test_proxy_heartbeats.py",
    ),
    # -- bounds ----------------------------------------------------------------------------------
    Mutant(
        "everything is bounded",
        "a task may kill owners without end",
        "agentos/core/proxy.py",
        "        if run.attempts >= self._limits.max_attempts:",
        "        if run.attempts < 0:",
    ),
    Mutant(
        "everything is bounded",
        "the line of an executor grows without end",
        "agentos/core/executor.py",
        "len(self._queued) >= self._max_waiting:",
        "len(self._queued) < 0:",
        "tests/test_executor.py",
    ),
    Mutant(
        "everything is bounded",
        "a task that kills its owners takes others along",
        "agentos/core/region.py",
        "        if last_chance and not self._tasks.try_alone(",
        "        if last_chance and not task.agents and not self._tasks.try_alone(",
    ),
    # -- at least once, at most one result -------------------------------------------------------
    Mutant(
        "a finished node is never run again",
        "a new owner does not read what was saved",
        "agentos/core/proxy.py",
        "return out + (self._load(run.task_id, now) if run.saved else self._begin(run.task_id, now))",
        "return out + self._begin(run.task_id, now)",
    ),
    Mutant(
        "a finished node is never run again",
        "saved samples are asked for again",
        "agentos/core/taskrun.py",
        "            self._saved.setdefault(node, []).append((round_, slot, saved))\n",
        "",
    ),
    Mutant(
        "one task for each key",
        "a second submission makes a second task (model)",
        "storage/memory.py",
        "            existing = None if key is None else self._open.keys.get((user_id, key))",
        "            existing = None",
        FENCE,
    ),
    Mutant(
        "an orderly stop repeats nothing",
        "tasks are handed back before what is in flight is saved",
        "agentos/core/taskrun.py",
        "        return not self.calls and not self._unsaved",
        "        return True",
    ),
    Mutant(
        "an orderly stop repeats nothing",
        "a proxy that is stopping begins what comes",
        "agentos/core/proxy.py",
        "        if self._draining:\n            return [self._dropped(run.task_id",
        "        if False:\n            return [self._dropped(run.task_id",
        "tests/test_proxy.py",
    ),
    Mutant(
        "stale means stop",
        "what was refused is begun again by a claim that comes late",
        "agentos/core/proxy.py",
        "        over = task.epoch.next_regional()\n        self._floors.lift(task_id, over)\n",
        "        over = task.epoch.next_regional()\n",
        "tests/test_proxy.py",
    ),
    Mutant(
        "the next owner decides the same",
        "a vote that could not be had is not saved",
        "agentos/core/taskrun.py",
        "            return out + self._advance(run, [row], now)\n",
        "            return out + self._advance(run, [], now)\n",
        "tests/test_taskrun.py",
    ),
    Mutant(
        "a region invents no end",
        "a region tells a client of an end",
        "agentos/core/routes.py",
        "    (m.Ended, (GATEWAY,), (CLIENT, ACTOR)),\n",
        "    (m.Ended, (GATEWAY, REGION, PROXY), (CLIENT, ACTOR)),\n",
        "tests/test_hostile_impostors.py",
    ),
    Mutant(
        "epochs come from claims",
        "an epoch that nobody issued may write (model)",
        "storage/memory.py",
        "        if epoch is not None and epoch > task.epoch:",
        "        if epoch is not None and epoch < Epoch(0, 0):",
        FENCE,
    ),
    Mutant(
        "the order of epochs",
        "a gateway's claim does not start the regional count anew",
        "agentos/core/epoch.py",
        "        return Epoch(self.global_epoch + 1, 0)",
        "        return Epoch(self.global_epoch, self.regional_epoch + 1)",
        "tests/test_epoch.py " + FENCE,
    ),
)
