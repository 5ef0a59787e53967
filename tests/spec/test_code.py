"""User code: found beside its pipeline, named where it fails, and all of it travels."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddlflow.errors import SpecError
from ddlflow.spec import code
from ddlflow.spec.load import Request, load

PIPELINE = """\
name: own
data: {source: t.parquet, label: y}
model: {use: "net:Net"}
train: {objective: binary}
"""
SITE = "engine: {use: local}\n"
Project = Callable[..., Request]


@pytest.fixture(autouse=True)
def _modules_as_before() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    code._from_beside.clear()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Makes a project of a pipeline file and modules; ``folder`` sets several apart."""

    def make(
        files: dict[str, str], *, pipeline: str = PIPELINE, folder: str = "one", name: str = "own"
    ) -> Request:
        root = tmp_path / folder
        (root / "conf").mkdir(parents=True, exist_ok=True)
        (root / "conf/local.yaml").write_text(SITE)
        place = "pipelines/own/pipeline.yaml" if name == "folder" else "pipelines/own.yaml"
        for path, text in {place: pipeline, **files}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        monkeypatch.chdir(root)
        return load("own")

    return make


def error_of(name: str, folder: Path | None) -> str:
    with pytest.raises(SpecError) as raised:
        code.resolve(name, folder)
    return str(raised.value)


# ---- found ----------------------------------------------------------------------------------


def test_a_module_beside_the_pipeline(project: Project) -> None:
    request = project({"pipelines/net.py": "class Net: width = 1"})
    assert code.names(request.pipeline) == {"model.use": "net:Net"}
    assert code.resolve("net:Net", request.code_folder).width == 1  # type: ignore[attr-defined]


def test_a_package_and_an_installed_module(project: Project) -> None:
    request = project({"pipelines/nets/__init__.py": "", "pipelines/nets/deep.py": "def f(): ..."})
    assert code.resolve("nets.deep:f", request.code_folder).__module__ == "nets.deep"
    assert code.resolve("json:dumps", request.code_folder).__module__ == "json"
    assert code.resolve("json:dumps", None).__module__ == "json"


def test_two_pipelines_with_modules_of_the_same_name_in_one_process(project: Project) -> None:
    """Namesakes that they import count too: each gets its own, again and again."""
    plans = [
        project(
            {
                "pipelines/net.py": "from layers import width\nclass Net: own = width",
                "pipelines/layers.py": f"width = {number}",
            },
            folder=str(number),
        )
        for number in (1, 2)
    ]
    for number in (1, 2, 1, 2):
        found = code.resolve("net:Net", plans[number - 1].code_folder)
        assert found.own == number  # type: ignore[attr-defined]


def test_another_pipelines_module_is_not_found_by_accident(project: Project) -> None:
    first = project({"pipelines/net.py": "class Net: ..."}, folder="first")
    code.resolve("net:Net", first.code_folder)
    second = project({}, folder="second")
    assert "there is no module net" in error_of("net:Net", second.code_folder)


def test_a_module_is_imported_once(project: Project) -> None:
    request = project({"pipelines/net.py": "class Net: ...\ndef f(): ..."})
    first = code.resolve("net:Net", request.code_folder)
    assert code.resolve("net:Net", request.code_folder) is first


def test_an_edited_module_is_imported_anew(project: Project) -> None:
    """As in a notebook: correct the file, call again."""
    request = project({"pipelines/net.py": "class Net: width = 1"})
    file = request.code_folder / "net.py"
    assert code.resolve("net:Net", request.code_folder).width == 1  # type: ignore[attr-defined]
    before = file.stat().st_mtime_ns
    file.write_text("class Net: width = 2")
    assert file.stat().st_mtime_ns != before
    assert code.resolve("net:Net", request.code_folder).width == 2  # type: ignore[attr-defined]


def test_a_module_of_the_users_script_gives_way_to_the_one_beside(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = project({"pipelines/net.py": "class Net: width = 2"})
    (tmp_path / "net.py").write_text("class Net: width = 1")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("net")
    assert code.resolve("net:Net", request.code_folder).width == 2  # type: ignore[attr-defined]


def test_importing_leaves_no_file_behind(project: Project) -> None:
    request = project(
        {"pipelines/net.py": "import layers\nclass Net: ...", "pipelines/layers.py": ""}
    )
    before = sorted(request.code_folder.rglob("*"))
    writes_none = sys.dont_write_bytecode
    code.resolve("net:Net", request.code_folder)
    assert sorted(request.code_folder.rglob("*")) == before
    assert sys.dont_write_bytecode == writes_none


# ---- not found, or not to be used -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Nett: ...", "pipelines/net.py has no Net. Did you mean 'Nett'?"),
        ("import json\nclass Other: ...", "pipelines/net.py has no Net. It has: Other."),
        ("Net = 3", "Net is 3; expected a class or function."),
        ("\n1 / 0", "importing net raises ZeroDivisionError: division by zero (net.py:2). Correct"),
        ("def f(:", "importing net raises SyntaxError: "),
        ("import sys\nsys.exit(3)", "importing net raises SystemExit: 3 (net.py:2)."),
        (
            "import no_such_package",
            "its import needs no_such_package, which is not installed (net.py:1). Install it, or",
        ),
        ("from json import no_such", "importing net raises ImportError: cannot import name 'no_"),
    ],
)
def test_code_that_cannot_be_used(project: Project, text: str, said: str) -> None:
    request = project({"pipelines/net.py": text})
    assert error_of("net:Net", request.code_folder).startswith(f"model.use is net:Net: {said}")


def test_no_such_module(project: Project) -> None:
    request = project({"pipelines/nets/__init__.py": ""})
    assert error_of("net:Net", request.code_folder) == (
        "model.use is net:Net: there is no module net, neither beside the pipeline in pipelines "
        "nor installed. Write net.py beside the pipeline, or correct the name."
    )
    assert "Write nets/deep.py beside" in error_of("nets.deep:Net", request.code_folder)
    assert "there is no module net installed" in error_of("net:Net", None)


def test_the_place_is_the_callers(project: Project) -> None:
    request = project({})
    with pytest.raises(SpecError, match=r"^train.objective.use is loss:f: "):
        code.resolve("loss:f", request.code_folder, "train.objective.use")


# ---- what travels ---------------------------------------------------------------------------


def test_of_a_single_file_what_it_names_and_what_that_imports_travels(project: Project) -> None:
    request = project(
        {
            "pipelines/net.py": "import layers\nfrom parts.a import b\ndef f():\n    import late",
            "pipelines/layers.py": "import json",
            "pipelines/late.py": "import net",
            "pipelines/parts/__init__.py": "",
            "pipelines/parts/a.py": "from . import b",
            "pipelines/parts/b.py": "",
            "pipelines/unrelated.py": "",
        }
    )
    assert sorted(code.files(request)) == [
        "late.py",
        "layers.py",
        "net.py",
        "parts/__init__.py",
        "parts/a.py",
        "parts/b.py",
    ]


def test_of_a_folder_what_no_module_needs_stays_where_it_is(project: Project) -> None:
    own = {"net.py": "from deep import more\nclass Net: ...", "deep/more.py": ""}
    others = {"venv/pyvenv.cfg": "", "venv/lib/x.py": "", ".hidden/y.py": "", "notes.txt": "x"}
    others |= {"unused.py": "", "upload.py": "PASSWORD = 'x'", "more/other.py": ""}
    request = project(
        {f"pipelines/own/{name}": text for name, text in (own | others).items()}, name="folder"
    )
    assert sorted(code.files(request)) == sorted(own)


def test_without_user_code_nothing_travels(project: Project, tmp_path: Path) -> None:
    request = project(
        {"pipelines/net.py": ""}, pipeline=PIPELINE.replace('{use: "net:Net"}', "{use: linear}")
    )
    assert code.names(request.pipeline) == {}
    assert code.files(request) == {}
    assert code.fingerprint(request) == ""
    assert code.gather(request, tmp_path / "to") is None
    assert not (tmp_path / "to").exists()


def test_the_fingerprint_is_of_names_and_bytes(project: Project) -> None:
    files = {"pipelines/net.py": "import layers", "pipelines/layers.py": "a = 1"}
    first = code.fingerprint(project(files, folder="1"))
    assert code.fingerprint(project(files, folder="2")) == first  # wherever it lies
    assert len(first) == 64
    changed = [
        {**files, "pipelines/layers.py": "a = 2"},
        {"pipelines/net.py": "import layers"},
        {"pipelines/net.py": "import layers", "pipelines/layers/__init__.py": "a = 1"},
    ]
    found = {code.fingerprint(project(each, folder=f"c{k}")) for k, each in enumerate(changed)}
    assert len(found | {first}) == 4
    unrelated = {**files, "pipelines/unrelated.py": "b = 1"}
    assert code.fingerprint(project(unrelated, folder="3")) == first


def test_code_that_travelled_is_run_only_if_it_is_the_recorded_one_and_trusted(
    project: Project, tmp_path: Path
) -> None:
    request = project({"pipelines/net.py": "import layers", "pipelines/layers.py": "a = 1"})
    there = code.gather(request, tmp_path / "far/code")
    assert there is not None
    recorded = code.fingerprint(request)
    assert code.digest_of(there) == recorded
    code.check_trusted(there, recorded, of="Run 1", trusted=True)
    with pytest.raises(SpecError, match=r"Run 1 brings code .* here: layers.py, net.py .*--trust-"):
        code.check_trusted(there, recorded, of="Run 1", trusted=False)
    for change in ("a = 2", None):
        (there / "layers.py").write_text(change) if change else (there / "layers.py").unlink()
        with pytest.raises(SpecError, match=r"The code of Run 1 .* is not the code that was recor"):
            code.check_trusted(there, recorded, of="Run 1", trusted=True)


def test_what_was_gathered_works_elsewhere(project: Project, tmp_path: Path) -> None:
    request = project(
        {
            "pipelines/net.py": "from parts.a import width\nclass Net: own = width",
            "pipelines/parts/__init__.py": "",
            "pipelines/parts/a.py": "width = 5",
        }
    )
    there = code.gather(request, tmp_path / "far/code")
    assert there == tmp_path / "far/code"
    assert code.resolve("net:Net", there).own == 5  # type: ignore[attr-defined]


def test_a_loss_is_user_code_too(project: Project) -> None:
    request = project(
        {"pipelines/loss.py": "def f(): ..."},
        pipeline=PIPELINE.replace('{use: "net:Net"}', "{use: linear}").replace(
            "{objective: binary}", '{objective: {use: "loss:f", like: binary}}'
        ),
    )
    assert code.names(request.pipeline) == {"train.objective.use": "loss:f"}
    assert list(code.files(request)) == ["loss.py"]
