"""Parts of the campaign with one question each."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from tests.chaos.cluster import Attacked
from tests.chaos.hand import Act

Say = Callable[[str], None]
SERVED_S = 3.0
AT_WORK = 20
"""Tasks that are finished by a cluster that is at work again."""
RECOVERED_S = 8.0


def pauses(attacked: Attacked, seconds: float, say: Say) -> list[str]:
    """Stop one of each role, each alone, under load: the others go on being served."""
    faults = []
    time.sleep(SERVED_S)
    shape = attacked.shape
    keeper = "store" if shape.apart else "gateway/main"
    for target in dict.fromkeys(("proxy/r1/1", "region/r1", "gateway/main", keeper)):
        before = len(attacked.load.finished)
        attacked.hand.do(Act(0.0, "freeze", target, seconds))
        time.sleep(seconds)
        during = len(attacked.load.finished) - before
        attacked.hand.finish()
        stuck = attacked.load.unfinished()
        deadline = time.monotonic() + 60
        while stuck.keys() & attacked.load.unfinished().keys() and time.monotonic() < deadline:
            time.sleep(0.1)
        late = stuck.keys() & attacked.load.unfinished().keys()
        say(
            f"{target} stood still for {seconds:g} s: {during} tasks finished meanwhile; the "
            f"{len(stuck)} under way at its end "
            + (f"are not all done: {sorted(late)}" if late else "are done")
        )
        if not during and target != keeper:
            faults.append(f"nothing was finished while {target} stood still")
        if late:
            faults.append(f"tasks {[stuck[n] for n in late]} hang after {target} stood still")
    return faults


def everything(attacked: Attacked, times: int, seed: int, say: Say) -> list[str]:
    """Kill everything at once, and start it again, so often: at work, or while it still recovers."""
    random = Random(seed)
    load = attacked.load
    for i in range(1, times + 1):
        done, begun = len(load.finished), time.monotonic()
        if i % 2:
            while len(load.finished) < done + AT_WORK and time.monotonic() < begun + 60:
                time.sleep(0.05)
        time.sleep(random.uniform(0.0, SERVED_S))
        attacked.kill_everything()
        attacked.start_again()
        say(
            f"killed everything {i} times: {len(load.accepted)} tasks accepted, "
            f"{len(load.finished)} finished, {len(load.finished) - done} since the last time"
        )
    return []


def alone(attacked: Attacked, times: int, seed: int, say: Say) -> list[str]:
    """Kill one owner, or one region, at a time, and let the cluster recover before the next."""
    random = Random(seed)
    time.sleep(SERVED_S)
    for i in range(1, times + 1):
        role = "region" if i % 4 == 0 else "proxy"
        names = [name for name in attacked.shape.roles if name.startswith(f"{role}/")]
        attacked.hand.do(Act(0.0, "kill", random.choice(names)))
        time.sleep(RECOVERED_S)
        if i % 10 == 0:
            say(f"{i} kills, each alone, {len(attacked.load.finished)} tasks finished")
    return []
