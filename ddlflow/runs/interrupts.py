"""What may end a command's work before it is done: a signal, or another command that took it over.

While a training is under way the first signal asks it to stop and leave a checkpoint; the second,
and any signal at another time, ends everything at once.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ddlflow.errors import DdlflowError


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: everything stops, what is finished is kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


class Interrupts:
    """The signals of one command, from `listen` to `close`.

    Args:
        say: takes a sentence for the user.

    Attributes:
        stop: set once a training is to leave a checkpoint and end.
        lost: why the work is another command's now; None while it is this one's.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.stop = threading.Event()
        self.lost: DdlflowError | None = None
        self._say = say
        self._is_training = False
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Takes signals, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def close(self) -> None:
        """Signals do what they did before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def of_a_training(self) -> Iterator[None]:
        """Around a training, which a first signal lets end by itself.

        Raises:
            Interrupted: it was stopped by a signal.
            DdlflowError: another command has taken the work over.
        """
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
        if self.lost is not None:
            raise self.lost
        if self._signal is not None:
            raise Interrupted(self._signal)

    def on_lost(self, error: DdlflowError) -> None:
        """Ends what the main thread does; called in the thread of a lease."""
        self.lost = error
        if self._handlers:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            self.stop.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again = self._signal is not None
        self._signal = number
        # A lost training leaves no checkpoint: its folder is another command's now.
        if self._is_training and not again and self.lost is None:
            self._say("stopping: a checkpoint is written (once more to stop at once)")
            self.stop.set()
        else:
            raise Interrupted(number)
