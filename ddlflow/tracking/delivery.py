"""The thread that carries a run's spool to MLflow while the run goes on."""

import threading
from collections.abc import Callable

from ddlflow.errors import TrackingError
from ddlflow.redact import redacted
from ddlflow.tracking.send import Sender
from ddlflow.tracking.spool import Spool

_MAX_BACKOFF_S = 30.0
_GATHER_S = 0.5  # records of so long go in one request


class Delivery:
    """Sends what the spool gets, and waits longer and longer while the server is away."""

    def __init__(self, uri: str, spool: Spool, say: Callable[[str], None]) -> None:
        self.uri = uri
        self._spool, self._say = spool, say
        self._sender = Sender(uri, spool, say)
        self._refusal: TrackingError | None = None
        self._changed = threading.Condition()  # guards and announces what follows
        self._opened = False  # open_run has returned the run
        self._tried = False  # the first attempt to send is over
        self._away = False  # the last attempt failed
        self._asked = False  # a call waits for its answer: send at once
        self._closing = False
        self._keep = True  # the spool's folder, once all is sent
        self._told = False  # the user knows of the outage
        self._thread = threading.Thread(target=self._send, name="ddlflow-tracking", daemon=True)

    def start(self, wait_s: float) -> None:
        """Begin to send; wait until the run is created, or known to be waiting.

        Raises:
            TrackingError: The run cannot be created, whenever the server answers.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._tried, wait_s)
            self._opened = self._refusal is None
        if self._refusal is not None:
            self._thread.join()
            raise self._refusal

    def wake(self) -> None:
        """Say that the spool has got a record."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, is_so: Callable[[], bool], wait_s: float) -> None:
        """Wait until something is so, or known to wait: the server is away."""
        with self._changed:
            self._changed.wait_for(lambda: self._away or is_so(), wait_s)

    def answer(self, offset: int, wait_s: float) -> str | None:
        """MLflow's answer to the record that ends at ``offset``; None while the server is away.

        Raises:
            TrackingError: MLflow will never take the record.
        """
        with self._changed:
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._away or self._spool.sent.offset >= offset, wait_s)
            self._asked = False
        if offset in self._sender.refusals:
            raise TrackingError(f"MLflow does not take it: {self._sender.refusals[offset]}")
        return self._sender.answers.get(offset)

    def close(self, timeout_s: float, *, keep: bool) -> None:
        """Try once more to send what is left, and end; the folder goes if all of it was sent."""
        with self._changed:
            self._closing, self._keep = True, keep
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():  # a request hangs; the thread is a daemon and dies with us
            self._say(self._what_waits())

    def _send(self) -> None:
        backoff_s = 1.0
        is_last = False
        while not is_last:
            is_last = self._closing  # read first: a try that begins after close() is the last
            is_away = not self._try()
            with self._changed:
                self._tried, self._away = True, is_away
                self._changed.notify_all()
                if self._refusal is not None:
                    if not self._opened:
                        return  # open_run raises it and clears up
                    self._changed.wait_for(lambda: self._closing)
                    is_last = True
                elif is_away:
                    self._changed.wait_for(lambda: self._closing, backoff_s)
                    backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                else:
                    backoff_s = 1.0
                    self._changed.wait_for(lambda: self._closing or not self._spool.is_sent)
                    self._changed.wait_for(lambda: self._closing or self._asked, _GATHER_S)
        self._finish()

    def _try(self) -> bool:
        """Send all that waits; False if the server is away. Says so when that changes."""
        try:
            self._sender.deliver()
        except TrackingError as error:
            self._refusal = error
            if self._opened:
                self._say(f"{error} The run goes on; its records wait in {self._spool.folder}.")
            return False
        except Exception as error:  # an outage, or a spool that cannot be read: never the run's end
            if not self._told:
                self._told = True
                self._say(
                    f"The tracking server {redacted(self.uri)} does not answer: "
                    f"{error} The run goes on; its records wait in {self._spool.folder}."
                )
            return False
        if self._told:
            self._told = False
            self._say("The tracking server answers again, and has what was waiting.")
        return True

    def _finish(self) -> None:
        if self._spool.is_lost:  # another process's, which was said
            self._spool.close()
            return
        if not self._spool.is_sent:
            self._say(self._what_waits())
        if self._spool.is_sent and not self._spool.has_refused and not self._keep:
            self._spool.remove()
        self._spool.close()

    def _what_waits(self) -> str:
        return (
            f"{self._spool.num_waiting()} tracking records of this run wait in "
            f"{self._spool.folder}; the next ddlflow command sends them."
        )
