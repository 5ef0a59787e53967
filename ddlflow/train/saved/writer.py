"""Writes checkpoints in a thread of its own, so that no step waits for a disk."""

import logging
import threading
from collections.abc import Callable

from ddlflow.errors import CheckpointError
from ddlflow.store.store import Place, store_of
from ddlflow.train.saved import checkpoint, fence
from ddlflow.train.saved.checkpoint import Plain, Say

log = logging.getLogger(__name__)


class Writer:
    """The thread; a newer state replaces one that still waits.

    Args:
        folder: of the training's checkpoints.
        say: gets a sentence when one cannot be written, and when one can again.
        attempt: whose checkpoints these are (`fence.claim`).
        on_saved: gets the step of each checkpoint that is on the disk; called in the thread.
    """

    def __init__(
        self,
        folder: Place,
        say: Say = log.error,
        *,
        attempt: int = 0,
        on_saved: Callable[[int], object] = lambda step: None,
    ) -> None:
        self._folder, self._attempt = store_of(folder), attempt
        self._say, self._on_saved = say, on_saved
        self._error: Exception | None = None  # of the last state that was tried
        self._waiting: tuple[int, Plain] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, step: int, state: Plain) -> None:
        """Hands over a state whose tensors nobody changes any more; returns at once.

        Raises:
            CheckpointError: a later attempt was seen to have begun: this one has to end.
        """
        if self._is_over:
            fence.check(self._folder, self._attempt)
        with self._changed:
            self._waiting = (step, state)
            self._changed.notify_all()

    def close(self) -> None:
        """Returns when the newest state is on the disk.

        Raises:
            CheckpointError: it could not be put there, also at a second try.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise CheckpointError(_sentence(self._error)) from self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ended)
                task, self._waiting = self._waiting, None
            if task is None:
                return
            if self._saved(*task):
                continue
            # A newer one will come; at the end none does, and this one is tried once more.
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ended)
                again = self._waiting is None
            if again:
                self._saved(*task)

    def _saved(self, step: int, state: Plain) -> bool:
        """Tries to write a state; says so where that fails for the first time, or works again.

        Whatever is wrong with a disk, a library or the memory, a healthy training outlives it; the
        next checkpoint is another try.
        """
        try:
            self._is_over = fence.is_over(self._folder, self._attempt)
            fence.check(self._folder, self._attempt)
            checkpoint.write(self._folder, step, state, self._attempt)
        except Exception as error:
            log.warning("a checkpoint was not written", exc_info=True)
            if self._error is None and not self._is_over:
                self._say(f"{_sentence(error)} The training goes on without it, and tries again.")
            self._error = error
            return False
        if self._error is not None:
            self._say("Checkpoints can be written again.")
        self._error = None
        self._on_saved(step)
        return True


def _sentence(error: Exception) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    what = " ".join(str(error).split())[:300].rstrip(".")
    return f"A checkpoint cannot be written: {type(error).__name__}{': ' if what else ''}{what}."
