"""A finished stage: the file that says what it made, and whether that still stands as written."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fsspec.utils import glob_translate

from ddlflow.runs.result_json import from_json, to_json
from ddlflow.store import documents
from ddlflow.store.store import Store, is_url, open_store

STAGE_FILE = "stage.json"
DIGEST = "digest"  # of all else that it holds
HASHED_BYTES = 64 * 2**20  # of a larger result the size alone is looked at each time it is found


Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Value_co]):
    """A finished stage: a small manifest of what it made.

    Attributes:
        name: prepare, train, evaluate or infer.
        key: the hash of all that it depends on.
        folder: on the storage.
        seconds: that its work took (when it was done).
        cached: whether this run found it done.
        value: what later stages and the user get (``ddlflow.runs.results``).
        results: its files that others read, each with its size and, unless it is large, SHA-256.
    """

    name: str
    key: str
    folder: str
    seconds: float
    cached: bool
    value: Value_co
    results: dict[str, list[Any]] = field(default_factory=dict)


def hashed(value: Any) -> str:
    """16 hex digits of the SHA-256 of JSON values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(folder: Store, key: str, size: int) -> list[Any]:
    """A result's size and, unless it is large, SHA-256: an object is whole by itself."""
    if size > HASHED_BYTES or is_url(folder.location):
        return [size]
    return [size, hashlib.sha256(folder.read(key)).hexdigest()]


def results_in(folder: Store, patterns: Sequence[str]) -> dict[str, list[Any]]:
    """What ``results`` of a stage holds: the files in its folder that fit some patterns."""
    found: dict[str, list[Any]] = {}
    for pattern in patterns:
        if not any(sign in pattern for sign in "*?["):
            sizes = {pattern: folder.size(pattern)} if folder.exists(pattern) else {}
        else:
            fits = re.compile(glob_translate(pattern)).match
            fixed = pattern.rpartition("/")[0].partition("*")[0].strip("/")
            sizes = {key: size for key, size in folder.sizes(fixed).items() if fits(key)}
        found |= {
            key: _facts(folder, key, size)
            for key, size in sizes.items()
            if "__pycache__" not in key.split("/")
        }
    return found


def save(stage: Stage[Any]) -> None:
    """Writes a stage's file: from now on the stage is done."""
    known = {name: getattr(stage, name) for name in stage.__slots__}
    known["value"] = to_json(stage.value)
    documents.save(open_store(stage.folder), STAGE_FILE, known | {DIGEST: hashed(known)}, indent=1)


def load(folder: Store, kind: type[Value]) -> Stage[Value]:
    """The finished stage of a folder, wherever the folder lies now.

    Args:
        folder: of the stage.
        kind: of its value.

    Raises:
        DdlflowError: another version of ddlflow wrote it.
    """
    known = json.loads(folder.read(STAGE_FILE))
    known.pop(DIGEST, None)
    value = from_json(kind, known.pop("value"), f"{folder.location}/{STAGE_FILE}")
    return Stage(**{**known, "cached": True, "folder": folder.location, "value": value})


def damaged(folder: Store) -> list[str]:
    """The files of a finished stage that are not as they were written."""
    known = documents.load(folder, STAGE_FILE)
    if not isinstance(known, dict):
        return [STAGE_FILE]
    if {*known} == {"name", "key", "folder", "seconds", "cached", "value"}:
        return []  # of an earlier ddlflow
    rest = {name: value for name, value in known.items() if name != DIGEST}
    if known.get(DIGEST) != hashed(rest):
        return [STAGE_FILE]
    return [key for key, facts in known["results"].items() if not _is_as(folder, key, facts)]


def _is_as(folder: Store, key: str, facts: list[Any]) -> bool:
    try:
        size = folder.size(key)
        return size == facts[0] and _facts(folder, key, size) == facts
    except FileNotFoundError:
        return False
