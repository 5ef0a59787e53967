"""Signs of life: whether a rank's work moves, told by a thread beside it.

A rank that is stopped or swapped out says nothing at all; the driver sees that by itself. One that
hangs in a collective still has this thread, which says how long the work has stood still. How long
is too long depends on the model: ten times the longest wait that ended well, at least ``limit_s``.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

BEAT_S = 1.0
FIRST_S = 120.0  # a first step may compile, or read its rows from a cold disk
FACTOR = 10.0


class Pulse:
    """Marked by the work at each step; a thread tells of it every `BEAT_S`.

    Args:
        emit: gets ``{"event": "beat", "step", "idle_s", "stuck"}``.
        limit_s: how long work may stand still, at least; 0: as long as it likes.

    Attributes:
        at: when the work last moved, monotonic; the work sets it.
        step: the last step done; the work sets it.
    """

    __slots__ = ("_emit", "_limit_s", "_longest_s", "_thread", "at", "step")

    def __init__(self, emit: Callable[[dict[str, Any]], None], limit_s: float) -> None:
        self.at = time.monotonic()
        self.step = 0
        self._emit = emit
        self._limit_s = limit_s
        self._longest_s = 0.0
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> "Pulse":
        """Begins to tell of it."""
        self._thread.start()
        return self

    def _beat(self) -> None:
        first, seen = self.step, self.at
        while True:
            time.sleep(BEAT_S)
            if self.at != seen:
                self._longest_s = max(self._longest_s, self.at - seen - BEAT_S)
                seen = self.at
            idle_s = time.monotonic() - seen
            limit_s = max(self._limit_s, FACTOR * self._longest_s)
            if self.step == first:
                limit_s = max(limit_s, FIRST_S)
            stuck = bool(self._limit_s) and idle_s > limit_s
            self._emit({"event": "beat", "step": self.step, "idle_s": idle_s, "stuck": stuck})
