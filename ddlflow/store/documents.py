"""JSON values as files of a store."""

import json
from typing import Any

from ddlflow.store.files import writing
from ddlflow.store.store import Store


def save(store: Store, key: str, value: Any, *, indent: int | None = None) -> None:
    """Writes a value, whole or not at all; the message of what fails says what to do.

    Raises:
        InputError: the storage may not be written at all.
        DdlflowError: it is full, or failed.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, separators=separators, indent=indent, allow_nan=indent is not None)
    with writing(f"{store.location}/{key}"):
        store.write(key, text.encode())


def load(store: Store, key: str) -> Any:
    """The value in a file; None where there is no whole one.

    Raises:
        OSError: an object store does not answer, or denies access.
    """
    try:
        return json.loads(store.read(key))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
