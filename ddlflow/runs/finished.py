"""A finished stage: the file that says what it made, and whether that still stands as written."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddlflow.data.shards.shard import sha256
from ddlflow.store.files import load_json
from ddlflow.store.site_storage import write_json

STAGE_FILE = "stage.json"
DIGEST = "digest"  # of all else that it holds
HASHED_BYTES = 64 * 2**20  # of a larger result the size alone is looked at each time it is found


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: a small manifest of what it made.

    Attributes:
        name: prepare, train, evaluate or infer.
        key: the hash of all that it depends on.
        folder: on the storage.
        seconds: that its work took (when it was done).
        cached: whether this run found it done.
        value: JSON values; what later stages and the user are told.
        results: its files that others read, each with its size and, unless it is large, SHA-256.
    """

    name: str
    key: str
    folder: str
    seconds: float
    cached: bool
    value: dict[str, Any]
    results: dict[str, list[Any]] = field(default_factory=dict)


def hashed(value: Any) -> str:
    """16 hex digits of the SHA-256 of JSON values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(path: Path) -> list[Any]:
    """A result's size and, unless it is large, SHA-256."""
    size = path.stat().st_size
    if size > HASHED_BYTES:
        return [size]
    return [size, sha256(path)]


def told(folder: Path, patterns: Sequence[str]) -> dict[str, list[Any]]:
    """What ``results`` of a stage holds: the files in its folder that fit some patterns."""
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {
        str(path.relative_to(folder)): _facts(path)
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def save(stage: Stage) -> None:
    """Writes a stage's file: from now on the stage is done."""
    known = asdict(stage)
    write_json(Path(stage.folder) / STAGE_FILE, known | {DIGEST: hashed(known)})


def load(folder: Path) -> Stage:
    """The finished stage of a folder, wherever the folder lies now."""
    known = json.loads((folder / STAGE_FILE).read_text())
    known.pop(DIGEST, None)
    return Stage(**{**known, "cached": True, "folder": str(folder)})


def damaged(folder: Path) -> list[Path]:
    """The files of a finished stage that are not as they were written."""
    known = load_json(folder / STAGE_FILE)
    if not isinstance(known, dict):
        return [folder / STAGE_FILE]
    if {*known} == {"name", "key", "folder", "seconds", "cached", "value"}:
        return []  # of an earlier ddlflow
    rest = {name: value for name, value in known.items() if name != DIGEST}
    if known.get(DIGEST) != hashed(rest):
        return [folder / STAGE_FILE]
    written = {folder / name: facts for name, facts in known["results"].items()}
    return [path for path, facts in written.items() if not path.is_file() or _facts(path) != facts]
