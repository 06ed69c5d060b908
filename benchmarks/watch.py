"""A limit for each part, so that one that hangs does not take the others with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 60.0
"""How long the part may take to clean up before it is interrupted once more."""


class Watch:
    """Interrupts what takes too long, as Ctrl-C would: everything knows how to end at that.

    Attributes:
        overdue: whether an interruption was ours, and not the user's.
    """

    def __init__(self) -> None:
        self.overdue = False

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Let the block take so many seconds. In the main thread only.

        Raises:
            KeyboardInterrupt: it takes longer.
        """
        self.overdue = False

        def ring(_number: int, _frame: object) -> None:
            self.overdue = True
            signal.raise_signal(signal.SIGINT)

        before = signal.signal(signal.SIGALRM, ring)
        timer = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *timer)  # somebody else's, if there was one
