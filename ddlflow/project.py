"""A project of the user's own, laid out from the template that the package carries."""

import shutil
from pathlib import Path

from ddlflow.errors import SpecError
from ddlflow.spec.load import template_folder

ROOMS = ("flows", "pipelines", "conf")


def lay_out(folder: Path) -> list[Path]:
    """Copies flows/, pipelines/ and conf/ into a new or empty folder; returns the files.

    Raises:
        SpecError: the folder holds something, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} is not empty. Name a new or an empty folder.")
    template = template_folder()
    written = []
    try:
        for room in ROOMS:
            for path in sorted((template / room).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    target = folder / path.relative_to(template)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                    written.append(target)
        (folder / "data").mkdir()
        (folder / ".gitignore").write_text(".ddlflow/\n/data/\n")
    except OSError as error:
        raise SpecError(f"{folder} cannot be written: {error.strerror}.") from None
    return [*written, folder / ".gitignore"]
