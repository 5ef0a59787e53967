"""Members cut into pieces on a worker: for all workers, and with models that fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddlflow.sweep.cutting import CutTask, cut_members
from ddlflow.sweep.place import Where, plain
from ddlflow.sweep.task import PieceTask, train_piece

NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features, width):
        super().__init__()
        if width == 5:
            raise ValueError("no five")
        self.width = width
        self.out = nn.Linear(num_features, 1)

    def forward(self, x):
        if self.width == 7:
            raise ValueError("no seven")
        return self.out(x).squeeze(1)
"""


@pytest.fixture
def where(ground: Callable[..., Any]) -> Where:
    return Where(str(ground().prepared.folder), None, "cpu", 1)


def test_members_are_cut_into_pieces_for_all_workers(
    ground: Callable[..., Any], where: Where
) -> None:
    members = tuple(plain(ground().member(str(k))) for k in range(6))
    apart_ = cut_members(CutTask(where, members, "never", 2))
    assert [(p.ids, p.fused) for p in apart_] == [((str(k),), False) for k in range(6)]
    assert {p.why for p in apart_} == {"sweep.fuse is never"}
    fused = cut_members(CutTask(where, members, "always", 2))
    assert len(fused) >= 2
    assert all(p.fused for p in fused)
    assert sorted(id_ for p in fused for id_ in p.ids) == [str(k) for k in range(6)]


def test_a_model_that_cannot_be_made_or_measured_spoils_no_other(
    ground: Callable[..., Any], where: Where, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(NET)
    there = replace(where, code=str(tmp_path / "code"))
    members = tuple(
        plain(ground().member(str(width), model={"use": "net:Net", "width": width}))
        for width in (3, 5, 7)
    )
    pieces = {p.ids[0]: p for p in cut_members(CutTask(there, members, "auto", 1))}
    assert pieces.keys() == {"3", "5", "7"}
    assert pieces["5"].why.startswith("its model cannot be made: net:Net(")
    assert not pieces["7"].fused
    found = {}
    for values in members:
        task = PieceTask(there, str(tmp_path / values.id), 0, (values,), False, "", driver="d")
        (found[values.id],) = train_piece(task)
    assert {id_: one.status for id_, one in found.items()} == {
        "3": "done",
        "5": "failed",
        "7": "failed",
    }
    assert "raised ValueError: no five (" in found["5"].reason
    assert found["7"].reason.startswith("ValueError: no seven (")
    assert found["7"].reason.endswith("net.py:13)")
