"""Only what the storage itself refuses is said to be the storage's fault."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.store.site_storage import storage_errors
from ddlflow.store.store import Store


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/etc/secret"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        FileNotFoundError(errno.ENOENT, "No such file", "weights.txt"),
        TimeoutError("timed out"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/cache"),
        OSError(errno.ENOSPC, "No space left on device"),  # and there is room in the storage
    ],
    ids=str,
)
def test_what_a_stage_meets_elsewhere_keeps_its_name(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path, of_work=True):
        raise error
    assert caught.value is error


def test_what_the_storage_refuses_is_said(tmp_path: Path) -> None:
    inside = str(tmp_path / "train" / "x.json")
    with (
        pytest.raises(SpecError, match=r"x\.json cannot be written: Permission denied"),
        storage_errors(tmp_path, of_work=True),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", inside)
    with (
        pytest.raises(DdlflowError, match=f"storage {tmp_path}: .* No space left"),
        storage_errors(tmp_path, of_work=True),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", inside)
    with pytest.raises(DdlflowError, match="cannot be written"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stage_that_reads_what_it_may_not_does_not_blame_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\ndata: {source: t.csv, label: y}\n"
        "model: {use: linear}\ntrain: {objective: binary}\n"
    )
    (tmp_path / "site.yaml").write_text("engine: {use: local, workers: 1}\n")
    monkeypatch.chdir(tmp_path)

    def work(folder: Store) -> dict[str, Any]:
        raise PermissionError(errno.EACCES, "Permission denied", "/etc/secret")

    request = load("p.yaml", "site.yaml", [])
    with Session(request, Screen(io.StringIO())) as session:
        with pytest.raises(PermissionError, match="/etc/secret"):
            session.stage("prepare", {}, work, dict)

        def full(store: Store) -> dict[str, Any]:
            folder = Path(store.location)
            (folder / "file").write_text("")
            (folder / "file" / "x").mkdir()
            return {}

        with pytest.raises(DdlflowError, match=r"storage .*file/x cannot be written: Not a direc"):
            session.stage("prepare", {}, full, dict)
