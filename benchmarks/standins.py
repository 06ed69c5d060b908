"""Many connected proxies without many processes: real proxies over real sockets, some in each.

`python -m benchmarks.standins REGION_URL GATEWAY_URL FIRST COUNT AGENT` hosts proxies FIRST and on
of region r1, as `agentos up` would start them, prints a line when all have been welcomed, and ends
when standard input does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agentos import EchoAgent
from agentos.host import Host
from agentos.logs import configure
from benchmarks.job import WrongCount

IN_A_PROCESS = 25
"""Not more: each is a thread, and Python runs one thread of a process at a time."""
WELCOME_S = 120.0


def host(url: str, gateway: str, first: int, count: int, agent: str) -> None:
    """Host proxies until standard input ends."""
    configure("error")
    with Host(agents=[EchoAgent(agent)]) as proxies:
        names = [
            proxies.proxy("r1", str(first + i), [url], shortcuts=[gateway]) for i in range(count)
        ]
        if not all(proxies.uplink(name).wait_up(WELCOME_S) for name in names):
            raise SystemExit(f"not all of {count} proxies were welcomed within {WELCOME_S:g} s")
        print("ready", flush=True)
        sys.stdin.read()


@contextmanager
def running(url: str, gateway: str, count: int, agent: str) -> Iterator[list[int]]:
    """So many proxies more for the region at `url`; yields the processes that host them."""
    with ExitStack() as stack:
        hosts = []
        for done in range(0, count, IN_A_PROCESS):
            number = min(IN_A_PROCESS, count - done)
            arguments = [url, gateway, str(1001 + done), str(number), agent]
            command = [sys.executable, "-m", "benchmarks.standins", *arguments]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            hosts.append(process)
        for process in hosts:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise WrongCount("the stand-ins of proxies have not started")
        yield [process.pid for process in hosts]


if __name__ == "__main__":
    host(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
