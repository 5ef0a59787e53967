"""What a result depends on beside its settings: versions, the processor's class, the commit."""

import base64
import hashlib
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import ddlflow

PACKAGES = (
    *("torch", "numpy", "pyarrow", "duckdb"),
    *("dask", "distributed", "prefect", "mlflow", "torchmetrics"),
)

# What `ddlflow.infer.model` imports (a test sees to it), and MLflow, which serves it.
SERVING = (
    "torch",
    "numpy",
    "pyarrow",
    "pandas",
    "fsspec",
    "pydantic",
    "PyYAML",
    "duckdb",
    "torchmetrics",
    "psutil",
    "mlflow",
)


def versions() -> dict[str, str]:
    """The installed versions of what a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def requirements(trained: Mapping[str, str]) -> list[str]:
    """What serving a model needs beside `wheel`, pinned to what trained it.

    Args:
        trained: the versions that the ranks had; of the others, those of this process count.
    """
    found = {name: trained.get(name) or metadata.version(name) for name in SERVING}
    return [f"{name}=={re.split('[+ ]', version)[0]}" for name, version in found.items()]


def wheel(folder: Path) -> Path:
    """Writes this ddlflow as a wheel, so that a model can be served by the code that trained it.

    A wheel, because ``ddlflow==0.1.0`` would be taken from whatever index is asked, from whoever
    registered the name there. It needs nothing by itself: `requirements` names and pins that. The
    same code gives the same bytes.

    Source: the layout of the binary distribution format (PyPA, PEP 427).
    """
    name = f"ddlflow-{ddlflow.__version__}"
    package = Path(ddlflow.__file__).parent
    files = {
        f"ddlflow/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*.py"))
        if "template" not in path.relative_to(package).parts
    }
    info = f"{name}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: ddlflow\nVersion: {ddlflow.__version__}\n".encode()
    )
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: ddlflow\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    lines = [f"{path},{_record_hash(content)},{len(content)}" for path, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)  # of 1980, whenever it is written
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return target


def _record_hash(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def git_commit(folder: Path) -> str:
    """The commit of a folder, with ``+`` behind it if files differ; empty if there is none."""
    git = shutil.which("git")
    if git is None:
        return ""
    found = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(
            [git, "-C", str(folder.resolve()), *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return ""
        found.append(done.stdout.strip())
    return found[0] + ("+" if found[1] else "")
