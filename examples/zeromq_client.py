"""Agent OS without Agent OS: a client of pyzmq and orjson alone, in one short script.

    pip install pyzmq orjson
    agentos up &                              # a cluster, on this machine or another
    python zeromq_client.py tcp://127.0.0.1:7170

It says hello, submits a task, asks for its status until it has ended, and prints the result.
docs/protocol.md describes the frames; any language with ZeroMQ and JSON can do the same.
"""

import secrets
import sys
import time

import orjson
import zmq

GRAPH = {
    "input": {"name": "world"},
    "nodes": {
        "hello": {"agent": "echo", "prompt": "Hello, ${input.name}"},
        "left": {"agent": "echo", "prompt": "${hello}, from the left"},
        "right": {"agent": "echo", "prompt": "${hello}, from the right"},
        "end": {"agent": "echo", "prompt": "${left}; ${right}."},
    },
    "output": "end",
}
ENDED = {"succeeded", "failed", "cancelled"}
PATIENCE_S = 5.0


class Connection:
    """One DEALER socket, and the six frames of an envelope."""

    def __init__(self, url: str) -> None:
        self.address = f"client/{secrets.token_hex(6)}"
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(url)
        self.asked = 0
        # Whoever says the same session later is the same process: it keeps its name.
        self.ask("", "hello", {"address": self.address, "session": secrets.token_hex(16)})

    def ask(self, to: str, kind: str, body: dict) -> dict:
        """Send one message and wait for the one that answers it."""
        self.asked += 1
        ref = f"q{self.asked}"
        header = [part.encode() for part in ("AOS1", to, self.address, ref, kind)]
        self.socket.send_multipart([*header, orjson.dumps(body)])
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            if not self.socket.poll(left * 1000):
                break
            frames = self.socket.recv_multipart()
            if frames[3].decode() != ref:
                continue  # something that was not asked for, or an answer that came too late
            answer = orjson.loads(frames[5])
            if frames[4] == b"refused":
                sys.exit(f"refused: {answer['code']}: {answer['reason']}")
            return answer
        sys.exit(f"no answer to {kind!r} within {PATIENCE_S:g} s: is a cluster running there?")


def main(url: str) -> None:
    """Submit, poll, print."""
    cluster = Connection(url)
    graph = orjson.dumps(GRAPH).decode()
    task_id = cluster.ask("gateway", "submit", {"task_description": graph})["task_id"]
    print(f"task {task_id} is accepted")
    while (task := cluster.ask("store", "get_task", {"task_id": task_id}))["state"] not in ENDED:
        print(f"task {task_id} is {task['state']}")
        time.sleep(0.2)
    print(f"task {task_id} has {task['state']}")
    print(orjson.loads(task["response"])["output"] if task["response"] else task["error"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:7170")
