"""A folder of one command alone, which is removed with it; `ddlflow doctor` removes lost ones."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddlflow.store.owner import beating, this_owner
from ddlflow.store.site_storage import remove_empty, storage_errors


@contextmanager
def scratch(storage: Path) -> Iterator[Path]:
    """A folder that every worker sees, for as long as it is needed.

    Args:
        storage: of the site, on a disk.
    """
    is_new = not storage.exists()
    with storage_errors(storage):
        storage.mkdir(parents=True, exist_ok=True)
        prefix = f"scratch-{this_owner().name}-"  # `ddlflow doctor` knows whose it is
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=storage))
    try:
        with beating(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            remove_empty(storage)
