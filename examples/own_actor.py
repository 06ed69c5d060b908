"""Your own Pykka actor on the switch, reached from another process as if it were here.

    python examples/own_actor.py        # starts the other process itself

The actor is plain Pykka. `attach_actor` gives it a name; any process that is connected, directly
or through others, gets a reference to it by that name, with Pykka's `tell`, `ask` and futures.
"""

import subprocess
import sys

import pykka

from agentos import Cluster, connect


class Counter(pykka.ThreadingActor):
    """Counts what it is told; says how many there were when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, int] = {}

    def on_receive(self, message: dict[str, str]) -> int:
        """A message is any JSON value, and so is the answer."""
        word = message["word"]
        self.words[word] = self.words.get(word, 0) + 1
        return self.words[word]


def elsewhere(url: str) -> None:
    """What runs in the other process: it knows a URL and a name, nothing else."""
    with connect(url) as switch:
        counter = switch.ref("counter/words")
        counter.tell({"word": "hello"})
        print("asked from another process:", counter.ask({"word": "hello"}, timeout=5))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        elsewhere(sys.argv[1])
    else:
        with Cluster(listen="tcp://127.0.0.1:*") as cluster:
            counter = Counter.start()
            cluster.host.switch("gateway/main").attach_actor("counter/words", counter)
            subprocess.run([sys.executable, __file__, cluster.url], check=True, timeout=30)
            print("asked from this one:", counter.ask({"word": "hello"}, timeout=5))
            counter.stop()
