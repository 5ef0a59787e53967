"""The wheel that a model carries, and what it needs beside it."""

import hashlib
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import ddlflow
from ddlflow.runs.installed import requirements, wheel

# What Python starts with in this environment, or comes with what is listed.
OTHERS = {"typing_extensions", "setuptools", "packaging", "six"}


def test_the_wheel_is_this_ddlflow_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = [wheel(tmp_path / name) for name in ("a", "b")]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in made}
    assert len(digests) == 1
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--disable-pip-version-check",
            "--target",
            str(tmp_path / "site"),
            str(made[0]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    package = Path(ddlflow.__file__).parent
    own = [path.relative_to(package) for path in package.rglob("*.py")]
    for path in own:
        assert (tmp_path / "site/ddlflow" / path).read_bytes() == (package / path).read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        assert sum(name.startswith("ddlflow/") for name in archive.namelist()) == len(own)


def test_what_a_served_model_imports_is_listed_and_pinned(tmp_path: Path) -> None:
    """In a process of its own: the distributions of all that loading a model imports."""
    code = (
        "import sys, importlib.metadata as m; before = set(sys.modules)\n"
        "import ddlflow.infer.model, ddlflow.train.tasks.scores\n"
        "tops = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "known = m.packages_distributions()\n"
        "print(*sorted({d for t in tops for d in known.get(t, [])}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    listed = {line.partition("==")[0].lower(): line for line in requirements({})}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+(post\d+)?", line) for line in listed.values())
    brought = set(listed)
    waiting = list(listed)
    while waiting:
        needs = metadata.requires(waiting.pop()) or []
        names = {re.split(r"[^\w.-]", need, maxsplit=1)[0].lower() for need in needs}
        waiting += sorted(name for name in names - brought if _is_installed(name))
        brought |= names
    brought = {name.replace("_", "-") for name in brought | OTHERS}
    found = {name.lower().replace("_", "-") for name in done.stdout.split()} - {"ddlflow"}
    assert found <= brought, found - brought


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
