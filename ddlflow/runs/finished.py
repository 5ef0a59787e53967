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
class ResultFile:
    """A file that a stage made: its bytes, and their SHA-256 unless they are many."""

    size: int
    sha256: str | None = None

    def to_json(self) -> list[int | str]:
        """``[size]``, or ``[size, sha256]``."""
        return [self.size] if self.sha256 is None else [self.size, self.sha256]


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
        results: its files that others read, by their path in the folder.
    """

    name: str
    key: str
    folder: str
    seconds: float
    cached: bool
    value: Value_co
    results: dict[str, ResultFile] = field(default_factory=dict)


def hashed(value: Any) -> str:
    """16 hex digits of the SHA-256 of JSON values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _result_file(folder: Store, key: str, size: int) -> ResultFile:
    """A result as it is now, without a hash in a bucket: an object is whole by itself."""
    if size > HASHED_BYTES or is_url(folder.location):
        return ResultFile(size)
    return ResultFile(size, hashlib.sha256(folder.read(key)).hexdigest())


def results_in(folder: Store, patterns: Sequence[str]) -> dict[str, ResultFile]:
    """What ``results`` of a stage holds: the files in its folder that fit some patterns."""
    found: dict[str, ResultFile] = {}
    for pattern in patterns:
        if not any(sign in pattern for sign in "*?["):
            sizes = {pattern: folder.size(pattern)} if folder.exists(pattern) else {}
        else:
            fits = re.compile(glob_translate(pattern)).match
            fixed = pattern.rpartition("/")[0].partition("*")[0].strip("/")
            sizes = {key: size for key, size in folder.sizes(fixed).items() if fits(key)}
        found |= {
            key: _result_file(folder, key, size)
            for key, size in sizes.items()
            if "__pycache__" not in key.split("/")
        }
    return found


def save(stage: Stage[Any]) -> None:
    """Writes a stage's file: from now on the stage is done."""
    known = {name: getattr(stage, name) for name in stage.__slots__}
    known["value"] = to_json(stage.value)
    known["results"] = {key: file.to_json() for key, file in stage.results.items()}
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
    results = {key: ResultFile(*facts) for key, facts in known.pop("results", {}).items()}
    now = {"cached": True, "folder": folder.location, "value": value, "results": results}
    return Stage(**{**known, **now})


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
    files = {key: ResultFile(*facts) for key, facts in known["results"].items()}
    return [key for key, file in files.items() if not _is_as(folder, key, file)]


def _is_as(folder: Store, key: str, file: ResultFile) -> bool:
    try:
        size = folder.size(key)
        return size == file.size and _result_file(folder, key, size) == file
    except FileNotFoundError:
        return False
