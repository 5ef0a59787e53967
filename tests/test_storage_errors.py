"""Only what the storage itself refuses is said to be the storage's fault."""

import errno
from pathlib import Path

import pytest

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.storage import storage_errors


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
