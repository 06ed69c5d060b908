"""When a proxy beats: often while it has something to do, and seldom while it rests."""

from __future__ import annotations

from agentos.core.limits import Limits


class Beating:
    """The rhythm of one proxy's heartbeats.

    It rests once it has said `suspect_after` times in a row that it holds nothing: one of these
    will have been heard. If it is given something then and has done with it within a heartbeat,
    nobody needs to be told.

    Args:
        limits: `heartbeat_s`, `suspect_after` and `idle_beat_s`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle_beats = 0
        self._stirred = False
        """Whether it rests, and has been given something since it last beat."""
        self._roused = False
        """Whether it was asked for a heartbeat since."""
        self._beaten_at = 0.0

    @property
    def at_rest(self) -> bool:
        """Whether the next heartbeat is far away."""
        stirred = self._stirred or self._roused
        return self._idle_beats >= self._limits.suspect_after and not stirred

    def stir(self, now: float) -> float:
        """It was given something while it was at rest; returns when it beats, if it still has it."""
        self._stirred = True
        return now + self._limits.heartbeat_s

    def rouse(self) -> None:
        """Whoever expects a heartbeat has asked for one: it is due, and not left out."""
        self._roused = True

    def put_off(self, *, busy: bool) -> float | None:
        """When a heartbeat that is due will do as well; None: it is to be sent now."""
        if busy or self._roused or not self._stirred:
            return None
        self._stirred = False
        return self._beaten_at + self._limits.idle_beat_s

    def beat(self, now: float, *, busy: bool) -> float:
        """It beats; returns when the next heartbeat is due."""
        self._idle_beats = 0 if busy else self._idle_beats + 1
        self._stirred = self._roused = False
        self._beaten_at = now
        rests = self._idle_beats >= self._limits.suspect_after
        return now + (self._limits.idle_beat_s if rests else self._limits.heartbeat_s)
