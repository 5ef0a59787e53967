"""``ddlflow init``, and the wheel: what it carries, and that it works without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ddlflow.errors import SpecError
from ddlflow.runs import project
from ddlflow.runs.project import lay_out
from ddlflow.spec.load import load

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for room in ("flows", "pipelines", "conf")
    for path in (ROOT / room).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


# ---- init -----------------------------------------------------------------------------------


def relative(files: list[Path], folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in files)


def test_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep/project"
    written = lay_out(folder)
    assert relative(written, folder) == sorted([*SHIPPED, ".gitignore"])
    assert (folder / "data").is_dir()
    assert relative([p for p in folder.rglob("*") if p.is_file()], folder) == relative(
        written, folder
    )
    monkeypatch.chdir(folder)
    assert load("quickstart").pipeline_path == folder / "pipelines/quickstart.yaml"


def test_an_empty_folder(tmp_path: Path) -> None:
    assert len(lay_out(tmp_path)) == len(SHIPPED) + 1


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_a_folder_that_holds_something_stays_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SpecError, match=r"holds files already. Name a new or an empty folder\."):
        lay_out(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("mine")
    with pytest.raises(SpecError, match=r"is a file\. Name a new or an empty folder"):
        lay_out(tmp_path / "project")
    with pytest.raises(SpecError, match="cannot be written: Not a directory"):
        lay_out(tmp_path / "project/inside")
    assert (tmp_path / "project").read_text() == "mine"


def test_what_could_not_be_finished_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(project.shutil, "copyfile", full)
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(SpecError, match="cannot be written: No space left on device"):
            lay_out(folder)
        assert list(tmp_path.iterdir()) == []


# ---- the wheel ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_carries_the_package_and_the_template(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA")))
        entry = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt")))
    assert len(names) == len(set(names))
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ddlflow").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(names) == package | {f"ddlflow/template/{name}" for name in SHIPPED}
    assert b"Name: ddlflow\n" in metadata
    assert b"Requires-Dist: torch" in metadata
    assert b"ddlflow = ddlflow.cli.app:command" in entry


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Installed apart and put first on the path: this checkout's editable install is not met."""
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", str(installed), str(wheel)], check=True
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def python(*arguments: str, cwd: Path) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = python("-c", "import ddlflow; print(ddlflow.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    said = python("-m", "ddlflow", "init", "project", cwd=tmp_path)
    assert said.endswith("\nNext: cd project && ddlflow run quickstart\n")
    check = ["-m", "ddlflow", "check", "quickstart", "--set", "engine.use=local"]
    said = python(*check, cwd=tmp_path / "project")
    assert "ok    files: pipelines/quickstart.yaml and conf/local.yaml are valid." in said
    assert "All is well." in said
    # Without a project too: names are looked up in the template that the package carries.
    code = "from ddlflow.spec.load import load; print(load('quickstart').pipeline_path)"
    assert Path(python("-c", code, cwd=tmp_path).strip()).is_relative_to(installed)
