"""A Python callable as an agent: sync ones in threads of their own, async ones in the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

from agentos import answers
from agentos.core.errors import AgentError, ConfigError
from agentos.core.fields import hint
from agentos.core.ports import AgentAnswer, AgentRequest

P = ParamSpec("P")
R = TypeVar("R")

MAX_CONCURRENCY = 16


class FunctionAgent(Generic[P, R]):
    """Calls a function with the prompt; what it returns is the answer.

    The function is given the prompt (str), or the whole `AgentRequest` if its parameter is
    annotated so. It returns a JSON value (dict, list, str, int, float, bool, None) or an
    `AgentAnswer`. What it raises fails the call, which may be tried again; it raises `AgentError`
    itself to decide that. The agent can still be called as the function.

    A sync function runs in a thread, and a thread cannot be interrupted: after a timeout or an
    abort it runs on, its result is dropped, and its place stays taken until it returns. The
    threads are daemons, so that one that never returns does not keep the process from ending.

    Args:
        function: a sync or async callable of one parameter.
        name: what nodes call the agent; the function's own name unless given.
        max_concurrency: calls at a time.

    Raises:
        ConfigError: there is no usable name, or the function cannot be called with one argument.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        max_concurrency: int = MAX_CONCURRENCY,
    ) -> None:
        functools.update_wrapper(self, function)
        self.name = str(name or getattr(function, "__name__", ""))
        self.max_concurrency = max_concurrency
        self.function = function
        if not self.name or self.name == "<lambda>":
            raise ConfigError(f"{function!r} has no name of its own: give the agent one (name=…)")
        if max_concurrency < 1:
            raise ConfigError(
                f"agent {self.name!r}: max_concurrency must be at least 1, not {max_concurrency}"
            )
        self._wants_request = _wants_request(function, self.name)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 (an object with an async __call__)
        )
        self._threads = _Threads(f"agent-{self.name}", max_concurrency)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    @classmethod
    def from_path(cls, path: str, *, name: str | None = None) -> FunctionAgent[..., Any]:
        """The agent that `package.module:attribute` names: a callable, or a `FunctionAgent`.

        Args:
            path: an import path; the module must be importable.
            name: what nodes call the agent; the function's own name unless given.

        Raises:
            ConfigError: the module or the attribute is missing, or is no callable.
        """
        found = _import(path)
        if isinstance(found, FunctionAgent):
            if name is None or name == found.name:
                return found
            return cls(found.function, name=name, max_concurrency=found.max_concurrency)
        if not callable(found):
            raise ConfigError(f"{path}: a {type(found).__name__} cannot be called")
        return cls(found, name=name)

    async def call(self, request: AgentRequest) -> AgentAnswer:
        """Call the function.

        What it returns is checked by the runner, like every agent's answer.

        Raises:
            AgentError: the function raised (retryable, unless it says otherwise).
        """
        if self._is_async:
            returned: Any = self._invoke(request)
        else:
            work = functools.partial(self._invoke, request)
            returned = await asyncio.wrap_future(self._threads.submit(work))
        if inspect.isawaitable(returned):
            try:
                returned = await returned
            except Exception as error:
                raise self._failure(error) from error
        return returned if isinstance(returned, AgentAnswer) else AgentAnswer(value=returned)

    async def close(self) -> None:
        """Let the threads end once their calls have returned. A later call starts new ones."""
        self._threads.close()

    def _invoke(self, request: AgentRequest) -> Any:
        function: Callable[..., Any] = self.function
        try:
            return function(request if self._wants_request else request.prompt)
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> AgentError:
        if isinstance(error, AgentError):
            return error
        return AgentError(f"agent {self.name!r} raised {answers.describe(error)}", retryable=True)


@overload
def agent(function: Callable[P, R], /) -> FunctionAgent[P, R]: ...


@overload
def agent(
    *, name: str | None = None, max_concurrency: int = MAX_CONCURRENCY
) -> Callable[[Callable[P, R]], FunctionAgent[P, R]]: ...


def agent(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    max_concurrency: int = MAX_CONCURRENCY,
) -> FunctionAgent[P, R] | Callable[[Callable[P, R]], FunctionAgent[P, R]]:
    """Make a function an agent: `@agent`, or `@agent(name="shout", max_concurrency=4)`.

    Args:
        function: the function, where it is used without parentheses.
        name: what nodes call the agent; the function's own name unless given.
        max_concurrency: calls at a time.

    Raises:
        ConfigError: as `FunctionAgent`.
    """
    if function is not None:
        return FunctionAgent(function)

    def decorate(decorated: Callable[P, R]) -> FunctionAgent[P, R]:
        return FunctionAgent(decorated, name=name, max_concurrency=max_concurrency)

    return decorate


_Work = tuple[concurrent.futures.Future[Any], Callable[[], Any]]


class _Threads:
    """Daemon threads, started as they are needed, up to a number.

    Not a `ThreadPoolExecutor`: the interpreter waits for its threads when it ends, and so a call
    that never returns would keep a process from stopping.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._open()

    def submit(self, call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Run `call` when a thread is free; cancelling the future before that drops it."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            self._work.put((future, call))
            if not self._idle.acquire(blocking=False) and self._started < self._limit:
                self._started += 1
                threading.Thread(
                    target=_serve,
                    args=(self._work, self._idle),
                    name=f"{self._name}-{self._started}",
                    daemon=True,
                ).start()
        return future

    def close(self) -> None:
        """End each thread after the work that it has; idempotent. New work starts new threads."""
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)
            self._open()

    def _open(self) -> None:
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()


def _serve(work: queue.SimpleQueue[_Work | None], idle: threading.Semaphore) -> None:
    while (item := work.get()) is not None:
        future, call = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 (the future carries it to its waiter)
                future.set_exception(error)
        del item, future, call  # an idle thread keeps nothing alive
        idle.release()


def _wants_request(function: Callable[..., Any], name: str) -> bool:
    """Whether the function's one parameter is annotated `AgentRequest`.

    Raises:
        ConfigError: it cannot be called with one argument.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        return False
    try:
        signature.bind(object())
    except TypeError as error:
        raise ConfigError(
            f"agent {name!r}: the function must take one argument, the prompt ({error})"
        ) from None
    annotation = next(iter(signature.parameters.values())).annotation
    if isinstance(annotation, str):  # from __future__ import annotations
        return annotation.rpartition(".")[2] == AgentRequest.__name__
    return annotation is AgentRequest


def _import(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{path!r} is not an import path: write package.module:attribute")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: there is no module {error.name!r} to import") from error
    except Exception as error:
        reason = f"importing {module_name} raised {answers.describe(error)}"
        raise ConfigError(f"{path}: {reason}") from error
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = hint(part, dir(found))
            raise ConfigError(f"{path}: {module_name} has no {part!r}{known}") from None
    return found
