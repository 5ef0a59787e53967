"""What is not as it was when a recorded run was trained: settings, versions, machine, data."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import ddlflow
from ddlflow.data.shards.manifest import NAME as MANIFEST
from ddlflow.data.shards.manifest_parts import Shard
from ddlflow.history.artifacts import RecordedDataset, dataset_of, recorded_dataset
from ddlflow.redact import redacted_values
from ddlflow.runs.finished import Stage
from ddlflow.runs.installed import PACKAGES, versions
from ddlflow.runs.ranks import together
from ddlflow.runs.results import PrepareResult
from ddlflow.runs.session import Session
from ddlflow.spec.given import flat
from ddlflow.spec.load import Request
from ddlflow.store.store import open_store
from ddlflow.tracking.read import Reader, Recorded

SHOWN = 3  # ranges that a sentence names
NAMED = 5  # names, classes or values that it names


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it was.

    Attributes:
        what: data, setting, version, threads or machine.
        text: a sentence: what it was and what it is.
    """

    what: str
    text: str


def surroundings(
    session: Session, reader: Reader, recorded: Recorded, place: Path
) -> list[Difference]:
    """What differs in settings, threads, versions and the machine."""
    tags = recorded.tags
    found = [
        Difference("setting", f"{name} was {was}, now {is_}")
        for name, was, is_ in _settings(session.request, recorded, place)
    ]
    threads = str(session.resources.threads)
    if threads != tags["threads"]:
        text = f"threads of a rank were {tags['threads']}, now {threads}"
        found.append(Difference("threads", text))
    before: Mapping[str, str] = reader.json(recorded.run_id, "versions.json", place)
    before = {"ddlflow": tags.get("version", ""), "Python": tags.get("python", ""), **before}
    workers = together(session.workers)
    now = {"ddlflow": ddlflow.__version__, "Python": workers["python"], **versions()}
    now |= {name: value for name, value in workers.items() if name in PACKAGES}
    found += [
        Difference("version", f"{name} was {was or 'not there'}, now {is_ or 'not there'}")
        for name in sorted({*before, *now})
        if (was := before.get(name, "")) != (is_ := now.get(name, ""))
    ]
    if tags.get("machine") != workers["machine"]:
        text = f"the processor was {tags.get('machine', 'not recorded')}, now {workers['machine']}"
        found.append(Difference("machine", text))
    return found


def _settings(request: Request, recorded: Recorded, place: Path) -> list[tuple[str, Any, Any]]:
    """(name, then, now) of what the pipeline of today does not have as the recorded one."""
    before = flat(yaml.safe_load((place / "pipeline" / "pipeline.yaml").read_text()))
    now = flat(redacted_values(request.pipeline.model_dump(mode="json", by_alias=True)))
    if request.pipeline.train.determinism == "elastic":
        before["train.virtual_ranks"] = int(recorded.tags["virtual_ranks"])  # it may be `auto`
        before.pop("train.micro_batch_rows", None)
    before["device"], now["device"] = recorded.tags["device"], request.site.device
    return [
        (name, before.get(name, "not set"), now.get(name, "not set"))
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def data(
    session: Session,
    reader: Reader,
    recorded: Recorded,
    prepared: Stage[PrepareResult],
    place: Path,
) -> list[Difference]:
    """Whether the source still gives the same shards of the same names, and where it does not."""
    if recorded.tags.get("data_digest") == prepared.value.digest:
        return []
    before = recorded_dataset(reader, recorded.run_id, place)
    values = json.loads(open_store(prepared.folder).read(MANIFEST))
    now = dataset_of(values, f"{prepared.folder}/{MANIFEST}")
    found = [
        Difference("data", f"the data changed: {name} was {was}, now {is_}")
        for name, (was, is_) in of_datasets([before, now]).items()
    ]
    return found + _of_shards(session, prepared, before, now)


def of_datasets(datasets: Sequence[RecordedDataset]) -> dict[str, list[str]]:
    """What differs in the names, vocabularies, classes and rows of data sets: a value of each."""
    described = [_described(dataset) for dataset in datasets]
    found = {}
    for name in described[0]:
        if not all(name in one for one in described):
            continue  # the values of a category that not all have: its name is said
        values = [one[name] for one in described]
        if any(value != values[0] for value in values):
            found[name] = _shown(values)
    return found


def _described(dataset: RecordedDataset) -> dict[str, list[str]]:
    """A data set in words."""
    named: dict[str, Sequence[Any]] = {
        "numeric features": dataset.numeric,
        "categorical features": list(dataset.vocabularies),
        "tensors": dataset.tensors,
        "label": [dataset.label],
        "classes": dataset.classes,
        **{f"values of {name}": values for name, values in dataset.vocabularies.items()},
        "rows": [_rows(dataset.shards)],
        "folds": [str(dataset.num_folds)],
    }
    return {name: [str(value) for value in values] for name, values in named.items()}


def _shown(values: list[list[str]]) -> list[str]:
    """Of lists that differ the part that does: what not all have, or else the places."""
    common = set(values[0]).intersection(*values)
    parts = [[one for one in value if one not in common] for value in values]
    if not any(parts):
        places = [i for i, row in enumerate(zip(*values, strict=False)) if len(set(row)) > 1]
        parts = [[value[i] for i in places] for value in values]
    return [
        ", ".join(part[:NAMED]) + (f" and {len(part) - NAMED} more" if len(part) > NAMED else "")
        or "none of its own"
        for part in parts
    ]


def _of_shards(
    session: Session,
    prepared: Stage[PrepareResult],
    before: RecordedDataset,
    now: RecordedDataset,
) -> list[Difference]:
    """Shards, then and now, that have other bytes; where they are in the source as it is now."""
    shards = (*before.shards, *now.shards)
    old, new = (
        {one.path: [f.sha256 for f in one.files] for one in each.shards} for each in (before, now)
    )
    changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
    if not changed:
        return []
    first_rows = {shard.path: shard.first_row for shard in shards}
    starts = sorted({shard.first_row for shard in now.shards})
    ends, files = np.cumsum(now.range_rows), _files(session, prepared.value.location)

    def place(path: str) -> str:
        """``1 (train, 1.parquet)``; a shard of several small ranges has all of them."""
        first = first_rows[path]
        after = bisect_right(starts, first)
        last = starts[after] - 1 if after < len(starts) else int(ends[-1]) - 1
        numbers = dict.fromkeys(np.searchsorted(ends, [first, last], side="right").tolist())
        names = " to ".join(dict.fromkeys(files[n] for n in numbers if n in files))
        split = Path(path).parent.name
        return f"{' to '.join(map(str, numbers))} ({split}{names and ', '}{names})"

    places = list(map(place, changed))
    shown = ", ".join(dict.fromkeys(places[:SHOWN]))
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    text = (
        f"the data changed: {prepared.value.location} gives {len(changed)} of {len(new)} shards "
        f"with other bytes, in its range {shown}{more}"
    )
    return [Difference("data", text)]


def _rows(shards: Sequence[Shard]) -> str:
    """The rows of each split."""
    splits = dict.fromkeys(shard.split for shard in shards)
    rows = {name: sum(s.rows for s in shards if s.split == name) for name in splits}
    return " + ".join(f"{rows[name]:,} {name}" for name in splits)


def _files(session: Session, location: str) -> dict[int, str]:
    """By range of the source, its file in words."""
    from ddlflow.data.sources.derive import only
    from ddlflow.data.sources.opening import open_source
    from ddlflow.data.sources.source import ranges

    plain = only(session.request.pipeline.data, [], where=False)
    found = open_source(location, plain, session.data_root)
    return {part.index: found.place(part) for part in ranges(found)}
