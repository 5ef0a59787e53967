"""Out-of-fold predictions: what each fold's model says to the rows that it has not seen."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ddlflow.data.columns import Label
from ddlflow.data.shards.rows import Rows
from ddlflow.models.call import call
from ddlflow.store.store import Place, store_of
from ddlflow.sweep.member import Member, Prepared, first_net, task_of
from ddlflow.train.saved.state import Tensors
from ddlflow.train.tasks.task import Task

PASS_ROWS = 2_048  # a pass whose activations stay in the cache


def write_predictions(member: Member, tensors: Tensors, prepared: Prepared, place: Place) -> str:
    """Writes ``predictions-<fold>.parquet``: a row for each held-out row of the member's fold.

    Columns: ``row``, its number in the source; ``fold``; ``label``; and those of
    `ddlflow.train.tasks.predictions`.

    Args:
        member: which.
        tensors: its trained state.
        prepared: the data set.
        place: where to write.

    Returns:
        Its name.
    """
    assert member.fold is not None
    fold = prepared.folds[member.fold]
    rows = Rows(fold.validation, fold.standardisation)
    net = first_net(member.model, member.train, prepared)
    net.load_state_dict(tensors)
    model = call(net.to(prepared.device).eval(), rows.inputs)
    task = task_of(member, prepared)
    label = task.label.scale
    found: dict[str, list[Any]] = {"row": [], "label": []}
    step = rows.piece_rows(PASS_ROWS)
    buffer = rows.empty(step) | {"row": np.empty(step, np.int64)}
    with torch.inference_mode():
        for start in range(0, rows.rows, step):
            part = rows.batch(start, min(start + step, rows.rows), buffer)
            found["row"].append(part.pop("row").copy())
            found["label"].append(part.pop("label").copy())
            batch = {n: torch.from_numpy(a).to(prepared.device) for n, a in part.items()}
            for name, values in task.predictions(label.to_source(model(batch))).items():
                # A copy: a model may give a view of its inputs, which the next pass overwrites.
                found.setdefault(name, []).append(values.cpu().numpy().copy())
    table = _table(found, task, prepared.manifest.label, member.fold)
    name = f"predictions-{member.fold}.parquet"
    with store_of(place).writing(name) as temporary:
        pq.write_table(table, temporary)
    return name


def _table(found: dict[str, list[Any]], task: Task, label: Label, fold: int) -> pa.Table:
    classes, offset = label.classes, label.offset
    values = {name: np.concatenate(parts) for name, parts in found.items()}
    columns: dict[str, pa.Array] = {
        "row": pa.array(values["row"]),
        "fold": pa.array(np.full(len(values["row"]), fold, np.int32)),
    }
    own = values["label"]
    columns["label"] = (
        pa.array(classes).take(pa.array(own.astype(np.int64)))
        if classes
        else pa.array(own.astype(np.float64) + offset)
    )
    return pa.table(columns | task.columns(values))
