"""Long jobs by turns: one computes at a time, but no short one waits for the end of a long one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.2  # how often somebody who waits looks up, and may leave


class Turns:
    """A lane for jobs of one process. Whoever has waited longest is next.

    seconds: after so long a job lets others go before it, when it next offers. clock: seconds, monotonic.
    """

    def __init__(self, seconds: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._working = False
        self._since = 0.0

    @contextmanager
    def job(self, waiting: Callable[[int], None]) -> Iterator[Callable[[], None]]:
        """Waits for the first turn and gives `offer`, to be called often: it waits while others have a turn.

        waiting: called some times a second while this job waits, with how many are before it; may raise, which ends
        the job.
        """
        held = False

        def take() -> None:
            nonlocal held
            me = object()
            with self._changed:
                self._waiting.append(me)
            try:
                while True:
                    with self._changed:
                        if not self._working and self._waiting[0] is me:
                            self._working = held = True
                            self._since = self._clock()
                            return
                        self._changed.wait(LOOK_SECONDS)
                        before = self._waiting.index(me) + self._working
                    waiting(before)
            finally:
                with self._changed:
                    self._waiting.remove(me)
                    self._changed.notify_all()

        def leave() -> None:
            nonlocal held
            with self._changed:
                self._working = held = False
                self._changed.notify_all()

        def offer() -> None:
            with self._changed:
                wanted = self._waiting and self._clock() - self._since >= self._seconds
            if wanted:
                leave()
                take()

        take()
        try:
            yield offer
        finally:
            if held:
                leave()
