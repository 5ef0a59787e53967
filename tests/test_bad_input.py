"""Bad input as a user meets it: clear lines, exit status 2, and nothing left behind.

What the headers tell is found before Prefect starts, by the command itself; what only reading
the rows tells is found by the stages, here under a session as the flow opens it.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow import api
from ddlflow.cli import app
from ddlflow.errors import DataError, SpecError, TrainingError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.check import precheck
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

ROWS = 300
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features, width=4):
        super().__init__()
        self.out = nn.Linear(num_features, 1)

    def forward(self, x):
        return self.out(x).squeeze(1)
"""
Write = Callable[..., None]


def table(**columns: Any) -> pa.Table:
    """Rows that can be learnt from; columns on top of them or in their place."""
    random = np.random.Generator(np.random.Philox(1))
    a, b = random.normal(size=(2, ROWS))
    found: dict[str, Any] = {"a": a, "b": b, "label": (a > 0).astype(int), "key": np.arange(ROWS)}
    return pa.table(found | columns)


def with_value(value: float, row: int = 7) -> np.ndarray[Any, Any]:
    values = np.linspace(-1, 1, ROWS)
    values[row] = value
    return values


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes a project in a folder of its own; sections are merged into a good pipeline."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()

    def make(rows: pa.Table | None = None, **sections: Any) -> None:
        pq.write_table(table() if rows is None else rows, "data/t.parquet")
        site = {"engine": {"use": "local", "workers": 1, "threads": 1}}
        good: dict[str, Any] = {
            "name": "p",
            "data": {"source": "t.parquet", "label": "label", "exclude": ["key"]},
            "model": {"use": "mlp", "hidden": [4]},
            "train": {"objective": "binary", "epochs": 2, "batch_rows": 50},
        }
        for name, values in sections.items():
            good[name] = {**good.get(name, {}), **values}
        Path("conf/local.yaml").write_text(yaml.safe_dump(site))
        Path("pipelines/p.yaml").write_text(yaml.safe_dump(good))

    return make


def tree() -> dict[str, bytes]:
    """Every file here with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


# ---- found before anything starts -----------------------------------------------------------


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs ``ddlflow run p ...``: the lines on standard error, once all that has to hold does."""

    def no_flow() -> Any:
        raise AssertionError("Prefect would have started")

    monkeypatch.setattr(api, "load_flow", no_flow)

    def run(*arguments: str, command: str = "run") -> list[str]:
        before = tree()
        monkeypatch.setattr(sys, "argv", ["ddlflow", command, "p", *arguments])
        with pytest.raises(SystemExit) as exited:
            app.main()
        out, err = capfd.readouterr()
        assert exited.value.code == 2, err
        assert out == ""
        assert tree() == before, "something was left behind"
        lines = err.splitlines()
        assert lines
        for line in lines:
            assert line.startswith("ddlflow: ")
            assert line.rstrip().endswith((".", "?", ":", "]", ")")), line  # whole sentences
        return lines

    return run


Refused = Callable[..., list[str]]


def the_line(lines: list[str]) -> str:
    (line,) = lines
    return line.removeprefix("ddlflow: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # missing file, wrong column
        ("data.source=no.parquet", "no.parquet: there is no such file or folder. Correct data.so"),
        ("data.source=no/*.csv", "no file matches. Correct data.source."),
        ("data.label=lable", "data.label names column lable, which the source lacks. Did you mean"),
        ("data.features=[a, c]", "data.features names column c, which the source lacks."),
        ("data.features=[a, label]", "data.features lists the label label. Take it out"),
        ("data.split={column: fold}", "data.split.column names column fold, which the source"),
        ("report.histogram=c", "report.histogram is 'c', which is no numeric feature. These are: "),
        ("infer.keys=[kye]", "infer.keys names column kye, which t.parquet lacks. Did you mean 'k"),
        # misspelt key, wrong type, wrong value
        ("train.epohcs=3", "train.epohcs is no known key. Did you mean 'epochs'?"),
        ("train.epochs=three", "train.epochs is 'three'; expected auto or a whole number."),
        ("train.epochs=0", "train.epochs is 0; expected auto or a whole number >= 1."),
        ("train.batch_rows=2.5", "train.batch_rows is 2.5; expected auto or a whole number."),
        ("model.use=mpl", "model.use is 'mpl'; expected linear, mlp or module:name. Did you mean"),
        ("train.optimizer={use: adam, lr: -1}", "train.optimizer.lr is -1; expected a number > 0."),
        ("train.virtual_ranks=51", "train.virtual_ranks is 51, more than the 50 rows of a global"),
        ("train.early_stopping={metric: auc}", "train.early_stopping.metric is 'auc', which obje"),
        ("data.missing=zero", "data.missing is 'zero'; expected impute, refuse or drop."),
        # the site
        ("storage=ftp://host/runs", "storage is ftp://host/runs; expected a folder that every"),
        ("storage=data/t.parquet", "is a file. Name a folder."),
        ("tracking.uri=mlruns", "tracking.uri is 'mlruns', which MLflow cannot log to."),
        ("engine.use=sparkle", "engine.use is 'sparkle'; expected "),
        ("engine.workers=-1", "engine.workers is -1; expected auto or a whole number >= 1."),
        # folds
        ("cv={folds: 301}", "cv.folds is 301, and t.parquet has 300 rows. Set cv.folds lower."),
        ("cv={folds: 1}", "cv.folds is 1; expected a whole number >= 2."),
        ("cv={kind: group}", "cv: kind group needs the column of the groups. Set cv.by."),
        ("cv={kind: group, by: kye}", "cv.by names column kye, which the source lacks. Did you me"),
        ("cv={kind: time, by: label}", "cv.by names the label label. Name a column of its own"),
        # what only the rows tell
        ("train.class_weights={2: 3}", "train.class_weights names '2', which is no class of the "),
        # user code
        ("model={use: 'nett:Net'}", "there is no module nett, neither beside the pipeline in pip"),
        ("model={use: 'net:Nett'}", "pipelines/net.py has no Nett. Did you mean 'Net'?"),
        ("model={use: 'net:Net', depth: 2}", "net:Net has no parameter 'depth'; it takes num_fe"),
    ],
)
def test_a_wrong_setting(write: Write, refused: Refused, change: str, said: str) -> None:
    write()
    Path("pipelines/net.py").write_text(NET)
    line = the_line(refused("--set", change))
    assert line.startswith(f"--set {change}: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "There is no pipeline 'p': pipelines/p.yaml does not exist. Known here: none."),
        ("name: p\n  data: 1\n", "pipelines/p.yaml:2: this is no valid YAML: "),
        ("", "pipelines/p.yaml is empty; expected keys and values"),
        ("name: p\nname: q\n", "pipelines/p.yaml:2: name is given twice, first at pipelines/p.ya"),
    ],
)
def test_a_wrong_file(write: Write, refused: Refused, text: str | None, said: str) -> None:
    write()
    if text is None:
        Path("pipelines/p.yaml").unlink()
    else:
        Path("pipelines/p.yaml").write_text(text)
    assert the_line(refused()).startswith(said)


LR = "train.optimizer.lr"


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"space": {"train.optimiser.lr": [0.1]}}, "Did you mean 'optimizer'?"),
        ({"space": {LR: []}}, "the list of values is empty"),
        ({"space": {LR: {"uniform": [0.2, 0.1]}}}, "Write the lower number first: [0.1, 0.2]"),
        ({"space": {LR: {"uniform": [0, 1]}}}, f"and {LR} is a range without end."),
        ({"space": {LR: [0.1]}, "metric": "r2"}, "'r2', which objective binary does not have."),
        ({"space": {LR: [0.1]}, "cv": True}, "search.cv is true, and the pipeline has no folds."),
    ],
)
def test_a_search_that_cannot_be(
    write: Write, refused: Refused, search: dict[str, Any], said: str
) -> None:
    write(search={"method": "grid", **search})
    assert said in the_line(refused(command="search"))


def test_a_command_whose_section_is_missing(write: Write, refused: Refused) -> None:
    write()
    said = the_line(refused("--json", command="search"))
    assert said.startswith("pipelines/p.yaml has no section search. Add one (such as search: {")
    said = the_line(refused(command="cross-validate"))
    assert said == "pipelines/p.yaml has no section cv. Add one (such as cv: {folds: 5})."


def test_no_such_site(write: Write, refused: Refused) -> None:
    write()
    assert the_line(refused("--on", "lcoal")).startswith("There is no site 'lcoal': conf/lcoal.yam")


@pytest.mark.parametrize(
    ("sections", "apart"),
    [
        ({"data": {"weight": "a"}}, "data.weight"),
        ({"train": {"class_weights": "balanced"}}, "train.class_weights"),
        ({"train": {"precision": "bf16"}}, "train.precision: bf16"),
        ({"model": {"batch_norm": True}}, "model.batch_norm"),
    ],
)
def test_what_is_trained_apart_is_not_always_fused(
    write: Write, refused: Refused, sections: dict[str, Any], apart: str
) -> None:
    write(**sections, cv={"folds": 3}, sweep={"fuse": "always"})
    line = the_line(refused())
    assert f"sweep.fuse is always, and trainings with {apart} are trained apart. Set sw" in line


def test_several_errors_are_a_line_each(write: Write, refused: Refused) -> None:
    write(train={"epohcs": 1, "seed": "x"}, model={"hiden": 3})
    lines = refused("--set", "data.rare_below=0")
    assert len(lines) == 4
    assert all(": " in line for line in lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "data/t.parquet is empty. "),
        (b"PAR1" + bytes(40), "data/t.parquet cannot be read: "),
        (None, "data/t.parquet cannot be read: "),  # truncated
        (b"a,b,label\n1,2,0\n", "data/t.parquet cannot be read: "),
    ],
)
def test_a_damaged_parquet_file(
    write: Write, refused: Refused, content: bytes | None, said: str
) -> None:
    write()
    file = Path("data/t.parquet")
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    line = the_line(refused())
    assert line.startswith("pipelines/p.yaml:")
    assert said in line


def test_a_table_without_rows(write: Write, refused: Refused) -> None:
    write(table().slice(0, 0))
    assert "holds no row. Correct data.source." in the_line(refused())


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (table().drop_columns(["b"]), "it lacks b. All files of a source need the same columns."),
        (table(b=["x"] * ROWS), "it has b as string and not double."),
        (table(c=[1] * ROWS), "it has c besides."),
    ],
)
def test_files_with_different_columns(
    write: Write, refused: Refused, second: pa.Table, said: str
) -> None:
    write(data={"source": "many"})
    Path("data/many").mkdir()
    pq.write_table(table(), "data/many/1.parquet")
    pq.write_table(second, "data/many/2.parquet")
    line = the_line(refused())
    assert "data/many/2.parquet differs from " in line
    assert said in line


def test_a_csv_row_of_another_length(write: Write, refused: Refused) -> None:
    write(data={"source": "t.csv"})
    pa.csv.write_csv(table(), "data/t.csv")
    lines = Path("data/t.csv").read_text().splitlines()
    lines[100] += ",9"
    Path("data/t.csv").write_text("\n".join(lines))
    assert "data/t.csv, line 101: " in the_line(refused())


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["2020-01-01"] * ROWS, "Feature c is of type timestamp[us]; a feature is a number or a"),
        ([["a", "b"]] * ROWS, "Feature c is of type list<"),
    ],
)
def test_a_column_that_is_no_feature(
    write: Write, refused: Refused, column: list[Any], said: str
) -> None:
    values = pa.array(column)
    if pa.types.is_string(values.type):
        values = values.cast(pa.timestamp("us"))
    write(table(c=values), data={"dates": "refuse"})
    line = the_line(refused())
    assert said in line
    assert "list it in data.exclude" in line


def test_a_text_label_of_a_regression(write: Write, refused: Refused) -> None:
    write(table(label=["x", "y"] * (ROWS // 2)), train={"objective": "regression"})
    assert "has to be a number. Correct data.label or train.objective." in the_line(refused())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (NET.replace("return", "raise ValueError('boom')\n        return"), "ValueError: boom ("),
        (NET.replace("self.out =", "assert width > 9, 'too narrow'; self.out ="), "too narrow"),
        ("def Net(num_features): return 5", "net:Net(num_features=2) made a int; expected a tor"),
        ("1 / 0", "importing net raises ZeroDivisionError: division by zero (net.py:1)."),
        ("import sys; sys.exit(0)", "importing net raises SystemExit: 0 (net.py:1)."),
    ],
)
def test_a_user_class_that_raises(write: Write, refused: Refused, code: str, said: str) -> None:
    write(model={"use": "net:Net", "hidden": None})
    text = Path("pipelines/p.yaml").read_text()
    Path("pipelines/p.yaml").write_text(text.replace("  hidden: null\n", ""))
    Path("pipelines/net.py").write_text(code)
    line = the_line(refused())
    assert line.startswith("pipelines/p.yaml:")
    assert said in line


def test_a_prefect_server_that_is_not_there(
    write: Write, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert the_line(refused()) == (
        "PREFECT_API_URL is http://127.0.0.1:9/api, which does not answer. Start that server, or "
        "unset it."
    )


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written: by its rights, or for root by its mount."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"rights do not bind root, and root may not mount here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_storage_that_is_read_only(write: Write, refused: Refused, read_only: Path) -> None:
    write()
    for storage in (read_only, read_only / "deeper/still"):
        line = the_line(refused("--set", f"storage={storage}"))
        assert f"storage {storage} cannot be written: {read_only} is read-only for you." in line


# ---- found by reading the rows --------------------------------------------------------------


def prepare() -> stages.Stage:
    """The flow's first steps."""
    request = load("p")
    with Session(request, Screen(io.StringIO())) as session:
        precheck(request)
        return stages.prepare(session)


@pytest.mark.parametrize(
    ("rows", "data", "said"),
    [
        (table(label=[1] * ROWS), {}, "Label label has one class alone (1: 300 rows)"),
        (table(label=[1, None] * (ROWS // 2)), {}, "The label is missing or infinite in some ro"),
        (table(label=[0, 1, 2] * (ROWS // 3)), {}, "Set train.objective to multiclass or regress"),
        (table(a=with_value(np.nan)), {"missing": "refuse"}, "Features hold missing values: a (1)"),
        (table(b=with_value(np.inf)), {"infinite": "refuse"}, "Features hold infinite values: b"),
        (table(a=[None] * ROWS), {}, "Missing in every training row: a. List it in data.exclude."),
    ],
)
def test_rows_that_are_refused(
    write: Write, rows: pa.Table, data: dict[str, Any], said: str
) -> None:
    write(rows, data=data)
    before = tree()
    with pytest.raises(DataError) as raised:
        prepare()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_status == 2
    assert tree() == before, "something was left behind"


@pytest.mark.parametrize(
    ("cv", "said"),
    [
        ({"kind": "group", "by": "key"}, "Every training row of class 1 has 1 in column key"),
        ({"kind": "group", "by": "key", "folds": 9}, "column key has 3 different values"),
        ({"folds": 241}, "cv.folds is 241, and there are 240 rows to train on."),
    ],
)
def test_folds_that_the_rows_do_not_allow(write: Write, cv: dict[str, Any], said: str) -> None:
    key = np.where(np.arange(ROWS) % 3 == 0, 1, np.arange(ROWS) % 2 * 2)
    write(table(key=key, label=(key == 1).astype(int)), cv={"folds": 3, **cv})
    before = tree()
    with pytest.raises(DataError) as raised:
        prepare()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert tree() == before, "something was left behind"


def test_text_deep_in_a_column_of_numbers(write: Write) -> None:
    """Behind the first 4 MiB, which the types are taken from."""
    write(data={"source": "t.csv"})
    lines = ["a,b,label,key"] + [f"{i / 7:.24f},{i % 9}.5,{i % 2},{i}" for i in range(120_000)]
    lines[118_000] = "0.5,oops,1,0"
    Path("data/t.csv").write_text("\n".join(lines))
    before = tree()
    with pytest.raises(DataError) as raised:
        prepare()
    assert "data/t.csv, line 118001: column b holds 'oops', which is not a number" in str(
        raised.value
    )
    assert tree() == before


@pytest.mark.parametrize(
    ("data", "dropped"),
    [({}, 0), ({"missing": "drop", "infinite": "drop"}, 2)],
    ids=["imputed", "dropped"],
)
def test_missing_and_infinite_values_are_counted(
    write: Write, data: dict[str, Any], dropped: int
) -> None:
    write(table(a=with_value(np.nan), b=with_value(np.inf, row=9)), data=data)
    prepared = prepare()
    assert sum(prepared.value.dropped.values()) == dropped
    assert sum(prepared.value.rows.values()) == ROWS - dropped
    assert prepared.value.replaced == ({} if dropped else {"a": 1, "b": 1})
    said = "dropped: 1 as a feature is missing (a 1)" if dropped else "mean (a 1, b 1)"
    assert said in prepared.value.warnings[0]


# ---- found by training ----------------------------------------------------------------------


def train() -> None:
    request = load("p")
    with Session(request, Screen(io.StringIO())) as session:
        precheck(request)
        stages.train(session, stages.prepare(session))


def test_a_loss_that_becomes_nan_names_rows(write: Write) -> None:
    far = with_value(1e30, row=123)
    write(
        table(label=far),
        data={"split": {"validation": 0, "test": 0}},
        train={
            "objective": "regression",
            "epochs": 5,
            "batch_rows": ROWS,
            "optimizer": {"use": "sgd", "lr": 1e25},
        },
    )
    with pytest.raises(TrainingError) as raised:
        train()
    text = str(raised.value)
    assert re.match(r"The loss is (inf|nan) at epoch \d, step \d\.", text)
    assert "row 123 (label = 1e+30)" in text
    assert "Lower train.optimizer.lr" in text
    assert raised.value.exit_status == 1


# ---- the whole way, once --------------------------------------------------------------------


def test_a_whole_command_that_meets_bad_rows(write: Write) -> None:
    """A real process: said before Prefect starts; no traceback, nothing left behind."""
    write(table(label=[1] * ROWS))
    before = tree()
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow", "run", "p", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("ddlflow: ")]
    assert said == [
        "ddlflow: Label label has one class alone (1: 300 rows): there is nothing to learn. "
        "Correct data.label or data.source."
    ]
    assert [line for line in done.stderr.splitlines() if line not in said] == []
    assert tree() == before


def test_an_error_is_an_input_error_from_python_too(write: Write) -> None:
    import ddlflow

    write()
    with pytest.raises(SpecError, match="epohcs is no known key"):
        ddlflow.run("p", set={"train.epohcs": 3})
