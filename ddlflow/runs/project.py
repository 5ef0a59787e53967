"""A project of the user's own, laid out from the template that the package carries."""

import shutil
from pathlib import Path

from ddlflow.errors import SpecError
from ddlflow.spec.load import template_folder

ROOMS = ("flows", "pipelines", "conf")
IGNORED = ".ddlflow/\n/data/\n__pycache__/\n"


def lay_out(folder: Path) -> list[Path]:
    """Copies flows/, pipelines/ and conf/ into a new or empty folder, and makes data/ there.

    Returns:
        The files that were written.

    Raises:
        SpecError: the folder holds something, or cannot be made; nothing is left behind.
    """
    folder = folder.expanduser()
    was_there = folder.exists()
    try:
        if was_there and (not folder.is_dir() or any(folder.iterdir())):
            what = "holds files already" if folder.is_dir() else "is a file"
            raise SpecError(f"{folder} {what}. Name a new or an empty folder.")
        return _write(folder)
    except OSError as error:
        _clear(folder, keep=was_there)
        raise SpecError(
            f"{folder} cannot be written: {error.strerror}. Name a folder that you may write."
        ) from None


def _write(folder: Path) -> list[Path]:
    template = template_folder()
    written = []
    for room in ROOMS:
        for path in sorted((template / room).rglob("*")):
            inside = path.relative_to(template)
            if path.is_file() and not any(part.startswith((".", "__")) for part in inside.parts):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / inside)
                written.append(folder / inside)
    (folder / "data").mkdir()
    (folder / ".gitignore").write_text(IGNORED)
    return [*written, folder / ".gitignore"]


def _clear(folder: Path, *, keep: bool) -> None:
    """Removes what was written into a folder that was empty or not there."""
    for name in (*ROOMS, "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
