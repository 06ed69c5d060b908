"""What a transport may offer beside its port: a loop that an actor turns while it waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


class Loop(Protocol):
    """The loop of a transport that reads and writes its sockets in one thread: its own, or a guest's.

    An actor that waits for messages may wait by turning the loop, so that none has to be handed
    from one thread to another.
    """

    def turn(self, wait_s: float, ready: Callable[[], bool]) -> bool:
        """Run the loop once in the caller's thread, which has it from then on.

        Args:
            wait_s: how long to wait if there is nothing to do, in seconds.
            ready: whether there is something else to do: then it does not wait. Whoever makes
                that so calls `wake` afterwards.

        Returns:
            whether the caller still has it: not if another guest does, or the transport closes.
        """
        ...

    def wake(self) -> None:
        """End the turn that waits, if one does. From any thread."""
        ...

    def leave(self) -> None:
        """Give it back to its own thread, if the caller has it."""
        ...


@runtime_checkable
class Looping(Protocol):
    """A transport with a loop that a guest may turn."""

    @property
    def loop(self) -> Loop:
        """That loop."""
        ...
