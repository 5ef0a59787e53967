"""Whether every worker sees the storage, as far as a file each way tells."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ddlflow.runs.check.finding import Finding, counted
from ddlflow.store.store import Store, open_store

DRIVER = "driver"  # the file that this process writes


class Asks(Protocol):
    """An engine, as far as it is needed here."""

    def ask(self, function: "Callable[[], Seen]") -> "list[Seen]":
        """What a function gives on each worker."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one worker saw.

    Attributes:
        host: where it runs.
        problem: why it could not read or write, or empty.
        key: of the file that it wrote.
    """

    host: str
    problem: str
    key: str


def look(location: str, token: str) -> Seen:
    """On a worker: reads what the driver wrote, and writes a file of its own."""
    store, key = open_store(location), f"worker-{uuid.uuid4().hex}"
    try:
        found = store.read(DRIVER)
        if found != token.encode():
            return Seen(os.uname().nodename, "it reads another file there", key)
        store.write(key, token.encode())
    except OSError as error:
        return Seen(os.uname().nodename, f"{error.filename}: {error.strerror}", key)
    return Seen(os.uname().nodename, "", key)


def seen(storage: Store, engine: Asks) -> Iterator[Finding]:
    """A finding for each worker that does not see what this process writes, or the other way.

    Raises:
        OSError: this process cannot write there.
    """
    token = uuid.uuid4().hex
    place = storage.at(f"check-{token}")
    try:
        place.write(DRIVER, token.encode())
        found = engine.ask(partial(look, place.location, token))
        wrong = [one for one in found if one.problem or not _has(place, one.key, token)]
        for one in wrong:
            why = one.problem or "what it writes there is not seen from here"
            yield Finding(
                "storage",
                "error",
                f"A worker on {one.host} does not see storage {storage.location}: {why}. Mount the "
                "same folder there, or set storage in the site file to a bucket (s3://...).",
            )
        if not wrong:
            text = f"{storage.location}: {counted(len(found), 'worker')} read and write there."
            yield Finding("storage", "ok", text)
    finally:
        with suppress(OSError):
            place.remove_all()


def _has(place: Store, key: str, token: str) -> bool:
    with suppress(OSError):
        return place.read(key) == token.encode()
    return False
