"""`tell` and `ask` on any actor, local or remote, with Pykka's own meaning and futures."""

from __future__ import annotations

import itertools
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pykka
import structlog
from pykka._envelope import Envelope as PykkaEnvelope

from agentos.core import errors
from agentos.core import messages as m
from agentos.core.errors import AgentError, AgentOSError, LocalProtocolError, Overloaded

if TYPE_CHECKING:
    from agentos.runtime.switch import Switch

log = structlog.get_logger()

NO_SUCH_ACTOR = "no_such_actor"
"""The code of a refusal that stands for `pykka.ActorDeadError`."""


class RemoteActorError(AgentOSError):
    """A remote actor raised an exception while it handled an `ask`; its type and text are quoted."""

    code = "raised"


_BY_CODE = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, AgentOSError)
} | {RemoteActorError.code: RemoteActorError}


def error_of(refused: m.Refused) -> Exception:
    """The exception that a refusal stands for."""
    if refused.code == NO_SUCH_ACTOR:
        return pykka.ActorDeadError(refused.reason)
    if refused.code == Overloaded.code:
        error = Overloaded(refused.reason)
        error.args = (refused.reason,)
        error.retry_after_s = 1.0 if refused.retry_after_s is None else refused.retry_after_s
        return error
    if refused.code == errors.GraphError.code:
        where, separator, reason = refused.reason.partition(": ")
        return errors.GraphError(where, reason) if separator else errors.GraphError("", where)
    if refused.code == AgentError.code:
        return AgentError(refused.reason, retryable=False, retry_after_s=refused.retry_after_s)
    return _BY_CODE.get(refused.code, AgentOSError)(refused.reason)


Resolve = Callable[[m.Message | Exception], None]
"""Takes the answer to one question, or the exception that stands for it. Called once."""


class Asker:
    """The asking side of a switch: a name of its own, and the questions that are open.

    Args:
        switch: where questions go out and answers come in.
    """

    def __init__(self, switch: Switch) -> None:
        self.address = f"client/{secrets.token_hex(6)}"
        self._switch = switch
        self._numbers = itertools.count(1)
        self._open: OrderedDict[str, Resolve] = OrderedDict()
        self._lock = threading.Lock()
        switch.attach(self.address, self._deliver)

    def ask(self, to: str, message: m.Message, resolve: Resolve) -> str:
        """Send a question; returns its number, for `forget`."""
        ref = f"a{next(self._numbers)}"
        oldest: Resolve | None = None
        with self._lock:
            self._open[ref] = resolve
            if len(self._open) > self._switch.limits.mailbox:
                _, oldest = self._open.popitem(last=False)
        if oldest is not None:
            oldest(Overloaded("too many questions are open"))
        self._switch.send([m.Envelope(to, self.address, message, ref)])
        return ref

    def tell(self, to: str, message: m.Message) -> None:
        """Send a message and expect nothing."""
        self._switch.send([m.Envelope(to, self.address, message)])

    def forget(self, ref: str) -> None:
        """Nobody waits for this answer any more."""
        with self._lock:
            self._open.pop(ref, None)

    def close(self) -> None:
        """Fail every question that is open."""
        self._switch.detach(self.address)
        with self._lock:
            waiting, self._open = self._open, OrderedDict()
        for resolve in waiting.values():
            resolve(pykka.ActorDeadError("the switch was closed before the answer came"))

    def _deliver(self, batch: list[m.Envelope]) -> None:
        for envelope in batch:
            message = envelope.message
            assert isinstance(message, m.Message), "the switch opens what it delivers"
            with self._lock:
                resolve = self._open.pop(envelope.ref, None)
            if resolve is not None:  # else it is late, or nobody asked
                resolve(error_of(message) if isinstance(message, m.Refused) else message)


class Ref:
    """A handle on an actor anywhere. Like `pykka.ActorRef`, with a name in place of an object.

    Messages are any JSON value for actors of your own, and typed messages for Agent OS's roles.
    """

    def __init__(self, address: str, asker: Asker) -> None:
        self.address = address
        self._asker = asker

    def tell(self, message: Any) -> None:
        """Send and forget."""
        self._asker.tell(self.address, _wrapped(message))

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send and expect an answer.

        Args:
            message: what to say.
            block: wait for the answer, or return a `pykka.Future` of it.
            timeout: seconds to wait; required when blocking, since an actor elsewhere may die
                without a word.

        Raises:
            pykka.Timeout: no answer came in time.
            pykka.ActorDeadError: nobody has this address.
            RemoteActorError: the actor raised an exception.
        """
        if block and timeout is None:
            raise LocalProtocolError("ask a remote actor with a timeout: it may never answer")
        future: pykka.ThreadingFuture[Any] = pykka.ThreadingFuture()

        def resolve(answer: m.Message | Exception) -> None:
            if isinstance(answer, Exception):
                future.set_exception((type(answer), answer, None))
            else:
                future.set(answer.value if isinstance(answer, m.Say) else answer)

        ref = self._asker.ask(self.address, _wrapped(message), resolve)
        if not block:
            return future
        try:
            return future.get(timeout=timeout)
        finally:
            self._asker.forget(ref)

    def __repr__(self) -> str:
        return f"<Ref {self.address}>"


def _wrapped(message: Any) -> m.Message:
    return message if isinstance(message, m.Message) else m.Say(value=message)


class _Reply(pykka.ThreadingFuture[Any]):
    """Given to a Pykka actor as the future to set; what it is set to travels back."""

    def __init__(self, switch: Switch, question: m.Envelope) -> None:
        super().__init__()
        self._switch = switch
        self._question = question

    def set(self, value: Any = None) -> None:
        self._send(value if isinstance(value, m.Message) else m.Say(value=value))

    def set_exception(self, exc_info: Any = None) -> None:
        kind, error, _ = exc_info or sys.exc_info()
        code = NO_SUCH_ACTOR if kind is pykka.ActorDeadError else RemoteActorError.code
        name = kind.__name__ if kind is not None else "Exception"
        # An error's text may hold what is no Unicode, like a file's name; JSON could not carry it.
        text = f"{name}: {error}"[:500].encode(errors="backslashreplace").decode()
        self._send(m.Refused(code=code, reason=text))

    def _send(self, message: m.Message) -> None:
        q = self._question
        self._switch.send([m.Envelope(q.sender, q.to, message, q.ref)])


def _unanswerable(switch: Switch, envelope: m.Envelope, refused: m.Refused) -> None:
    """An actor's answer came back. Where it cannot be written, its asker must not wait for it."""
    log.warning("answer_undelivered", actor=envelope.to, asker=envelope.sender, why=refused.reason)
    if refused.code == LocalProtocolError.code:
        reason = f"the answer cannot be sent: {refused.reason}"[:500]
        failed = m.Refused(code=RemoteActorError.code, reason=reason)
        switch.send([m.Envelope(envelope.sender, envelope.to, failed, envelope.ref)])


def attach_actor(switch: Switch, address: str, actor: pykka.ActorRef[Any]) -> None:
    """Put a Pykka actor of your own on a switch.

    It receives the values that others `tell` and `ask`, in `on_receive`; what it returns is the
    answer. While `limits.mailbox` messages wait for it, more are refused as `Overloaded`. Raises
    what `Switch.attach` raises.
    """
    inbox: Any = actor.actor_inbox  # a `queue.Queue`, which Pykka's protocol does not say

    def deliver(batch: list[m.Envelope]) -> None:
        if inbox.qsize() + len(batch) > switch.limits.mailbox:
            raise Overloaded(f"{inbox.qsize()} messages wait for {address!r}")
        for envelope in batch:
            said = envelope.message
            if isinstance(said, m.Refused):
                _unanswerable(switch, envelope, said)
                continue
            value = said.value if isinstance(said, m.Say) else said
            reply = _Reply(switch, envelope) if envelope.ref else None
            if actor.is_alive():
                inbox.put(PykkaEnvelope(value, reply))
            elif reply is not None:
                error = pykka.ActorDeadError(f"{address!r} has stopped")
                reply.set_exception((pykka.ActorDeadError, error, None))

    switch.attach(address, deliver)
