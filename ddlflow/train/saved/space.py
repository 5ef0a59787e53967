"""What a training cannot go on without waits for space on a full disk."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from ddlflow.train.pulse import Pulse

Say = Callable[[str], None]
Written = TypeVar("Written")
TRY_EVERY_S = 1.0
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def wait_for_space(write: Callable[[], Written], what: str, *, pulse: Pulse, say: Say) -> Written:
    """Does what needs space; on a full disk says so, and tries again until there is some.

    Args:
        write: raises OSError on a full disk, and may be called again then.
        what: it writes, as the user would call it.
        pulse: waiting is no fault of the work.
        say: gets a sentence as the waiting begins, and as it ends.
    """
    resting, waited = pulse.resting, False
    while True:
        try:
            done = write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not waited:
                waited = pulse.resting = True
                say(f"{what} cannot be written: {error.strerror}. The training waits for space.")
            time.sleep(TRY_EVERY_S)
            continue
        if waited:
            pulse.at = time.monotonic()
            pulse.resting = resting
            say(f"There is space again: {what} is written, and the training goes on.")
        return done
