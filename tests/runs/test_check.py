"""``check`` finds all that can be known before a run, and writes nothing."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.errors import SpecError
from ddlflow.runs.check import check, errors, precheck
from ddlflow.runs.check.finding import Finding, counted
from ddlflow.spec.load import load

NET = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.out = nn.Linear(num_features, 1)

    def forward(self, x):
        return self.out(x).squeeze(1)
"""
Make = Callable[..., None]


def table(rows: int = 200, **columns: Any) -> pa.Table:
    found: dict[str, Any] = {"a": [float(i) for i in range(rows)], "b": [1.5, -1.5] * (rows // 2)}
    found |= {"label": [0, 1] * (rows // 2), "key": list(range(rows))}
    return pa.table(found | columns)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a project: ``make(data={...}, train={...}, site={...}, rows=table)``."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()

    def write(
        *, rows: pa.Table | None = None, files: dict[str, str] | None = None, **sections: Any
    ) -> None:
        pq.write_table(table() if rows is None else rows, "data/t.parquet")
        site = {"engine": {"use": "local", "workers": 1}, **sections.pop("site", {})}
        pipeline = {
            "name": "p",
            "data": {"source": "t.parquet", "label": "label", "exclude": ["key"]}
            | sections.pop("data", {}),
            "model": {"use": "mlp", "hidden": [4]},
            "train": {"objective": "binary", "batch_rows": 50} | sections.pop("train", {}),
            **sections,
        }
        Path("pipelines/p.yaml").write_text(yaml.safe_dump(pipeline))
        Path("conf/local.yaml").write_text(yaml.safe_dump(site))
        for name, text in (files or {}).items():
            Path(name).write_text(text)

    return write


def tree() -> dict[str, tuple[int, int]]:
    """Every file and folder here, with size and change time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in Path().rglob("*")}


def look(*changes: str, on: str = "local") -> list[Finding]:
    """What ``check`` finds; it has to leave everything as it was."""
    before = tree()
    found = check("p", on, changes)
    assert tree() == before
    return found


def wrong(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level == "error"]


def only_error(found: list[Finding]) -> Finding:
    (error,) = wrong(found)
    assert errors(found) == 1
    return error


def text_of(found: list[Finding], what: str) -> str:
    return " ".join(finding.text for finding in found if finding.what == what)


# ---- all is well ----------------------------------------------------------------------------


def test_a_good_pipeline(make: Make) -> None:
    make()
    found = look()
    assert errors(found) == 0
    assert [finding.what for finding in found] == [
        "files",
        "source",
        "label",
        "storage",
        "tracking",
        "workers",
        "prefect",
    ]
    assert "200 rows, 1 range; 2 numeric and 0 categorical features" in text_of(found, "source")
    assert "label has 2 classes in 200 rows: 0: 50.0%, 1: 50.0%." in text_of(found, "label")
    assert "GB free" in text_of(found, "storage")
    assert "embedded" in text_of(found, "tracking")
    assert "1 worker" in text_of(found, "workers")


def test_a_made_source(make: Make) -> None:
    make(data={"source": {"use": "collider", "rows": 5000}, "exclude": []})
    found = look()
    assert errors(found) == 0
    assert text_of(found, "source") == "5,000 rows of collider will be made."


def test_user_code_is_tried(make: Make) -> None:
    make(model={"use": "net:Net"}, files={"pipelines/net.py": NET})
    found = look()
    assert errors(found) == 0
    assert text_of(found, "model") == "net:Net: tried; 3 parameters."


def test_a_parameter_that_no_gradient_reaches_is_worth_a_note(make: Make) -> None:
    idle = NET.replace("self.out =", "self.idle = nn.Parameter(torch.zeros(2)); self.out =")
    make(model={"use": "net:Net"}, files={"pipelines/net.py": idle})
    found = look()
    assert [f.level for f in found if f.what == "model"] == ["ok", "note"]
    assert "idle" in text_of(found, "model")


# ---- what the pipeline says -----------------------------------------------------------------


def test_errors_of_the_files_are_findings(make: Make) -> None:
    make()
    found = look("train.epohcs=1", "device=gpu")
    assert [(f.what, f.level) for f in found] == [("files", "error")] * 2
    assert found[0].text.startswith("--set train.epohcs=1: train.epohcs is no known key.")


def test_several_errors_come_at_once_each_with_its_place(make: Make) -> None:
    make(report={"histogram": "zz"}, infer={"keys": ["kex"]})
    found = look("train.virtual_ranks=51", "train.early_stopping={metric: auc}")
    lines = Path("pipelines/p.yaml").read_text().splitlines()
    assert sorted(f.text.split(": ")[0] for f in wrong(found)) == [
        "--set train.early_stopping={metric",
        "--set train.virtual_ranks=51",
        f"pipelines/p.yaml:{lines.index('  histogram: zz') + 1}",
        f"pipelines/p.yaml:{lines.index('  keys:') + 1}",
    ]


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        ("data.source=no.parquet", "source", "there is no such file or folder"),
        ("data.test_source=no.parquet", "source", "Correct data.test_source."),
        ("infer.source=no.parquet", "source", "Correct infer.source."),
        ("data.label=lable", "source", "Did you mean 'label'?"),
        ("data.features=[a, bb]", "source", "data.features names column bb"),
        ("data.exclude=[kee]", "source", "Did you mean 'key'?"),
        ("data.split={column: s}", "source", "data.split.column names column s"),
        ("infer.keys=[kex]", "source", "infer.keys names column kex, which t.parquet lacks. Did y"),
        ("report.histogram=label", "report", "which is no numeric feature. These are: a, b."),
        ("train.virtual_ranks=51", "train", "more than the 50 rows of a global batch"),
        ("train.early_stopping={metric: auc}", "train", "Did you mean 'auroc'?"),
        ("device=cuda", "workers", "Set device: auto or cpu"),
        ("tracking.uri=ftp://x", "tracking", "which MLflow cannot log to"),
        ("storage=ftp://host/x", "storage", "expected a folder that every worker sees"),
        ("storage=data/t.parquet/x", "storage", "is a file. Name a folder."),
    ],
)
def test_one_wrong_setting_is_one_error(make: Make, change: str, what: str, said: str) -> None:
    if change == "device=cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU: device=cuda is right here")
    make()
    error = only_error(look(change))
    assert error.what == what
    assert error.text.startswith(f"--set {change}: ")
    assert said in error.text


def test_a_test_source_and_an_inference_source_need_the_features(make: Make) -> None:
    make()
    pq.write_table(table().drop_columns(["b", "label"]), "data/other.parquet")
    error = only_error(look("data.test_source=other.parquet"))
    assert "data.test_source other.parquet lacks the columns label, b." in error.text
    error = only_error(look("infer.source=other.parquet"))
    assert "infer.source other.parquet lacks the columns b." in error.text


def test_early_stopping_without_validation_rows(make: Make) -> None:
    make(data={"split": {"validation": 0}})
    error = only_error(look("train.early_stopping={metric: auroc}"))
    assert "needs validation rows. Set data.split.validation above 0." in error.text


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (None, "model.use is net:Net: there is no module net"),
        (NET.replace("Net(", "Nett("), "net.py has no Net. Did you mean 'Nett'?"),
        (NET.replace("x):\n", "x):\n        raise ValueError('boom')\n"), "ValueError: boom ("),
        (NET.replace(".squeeze(1)", ""), "Drop the last axis with squeeze(1)."),
        (NET.replace("num_features)", "num_features, width)", 1), "net:Net needs 'width'"),
    ],
)
def test_user_code_that_does_not_work(make: Make, net: str | None, said: str) -> None:
    make(model={"use": "net:Net"}, files={"pipelines/net.py": net} if net else {})
    error = only_error(look())
    assert error.what == "model"
    assert error.text.split(": ")[0] in {"pipelines/p.yaml:6", "pipelines/p.yaml:7"}  # model, use
    assert said in error.text


def test_a_loss_that_is_a_mean(make: Make) -> None:
    make(
        train={"objective": {"use": "loss:f", "like": "binary"}},
        files={
            "pipelines/loss.py": "def f(outputs, labels): return (outputs - labels).mean() ** 2"
        },
    )
    assert "loss:f gives" in only_error(look()).text


# ---- what the table holds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "objective", "said"),
    [
        ([1] * 200, "binary", "label has 1 class in 200 rows: 1: 100.0%. Two are needed"),
        ([0, 1, 2, 3] * 50, "binary", "Set train.objective to multiclass or regression."),
        ([None, 1] * 100, "binary", "label is missing in 100 of 200 rows."),
        ([2.5] * 200, "regression", "label is 2.5 in all of 200 rows: there is nothing to learn."),
        ([float("nan"), 1.0] * 100, "regression", "label is missing in 100 of 200 rows."),
    ],
)
def test_a_label_that_cannot_be_learnt(
    make: Make, label: list[Any], objective: str, said: str
) -> None:
    make(rows=table(label=label), train={"objective": objective})
    assert said in " ".join(f.text for f in wrong(look()) if f.what == "label")


def test_rows_without_a_label_may_be_dropped(make: Make) -> None:
    rows = table(label=[None, 1, 0, 1] * 50)
    make(rows=rows, data={"label_missing": "drop"})
    assert errors(look()) == 0
    make(rows=rows, data={"missing": "drop"})
    assert "Set data.label_missing: drop" in text_of(look(), "label")


@pytest.mark.parametrize(
    ("label", "objective", "said"),
    [
        (["signal", "noise"] * 100, "binary", "2 classes in 200 rows: "),
        ([True, False] * 100, "binary", "2 classes"),
        ([0.0, 1.0] * 100, "binary", "200 rows: 0: 50.0%, 1: 50.0%."),
        (list(range(20)) * 10, "multiclass", "20 classes in 200 rows: 0: 5.0%"),
        ([float(i) for i in range(200)], "regression", "label spans 0 to 199 in 200 rows."),
    ],
)
def test_the_balance_of_the_label(make: Make, label: list[Any], objective: str, said: str) -> None:
    make(rows=table(label=label), train={"objective": objective})
    found = look()
    assert errors(found) == 0
    assert said in text_of(found, "label")


def test_a_label_that_only_begins_constant_is_a_note(make: Make) -> None:
    """A source of several ranges may be sorted by its label."""
    make()
    sorted_rows = table(label=[0] * 100 + [1] * 100)
    pq.write_table(sorted_rows, "data/t.parquet", row_group_size=100)
    from ddlflow.data.sources.opening import open_source
    from ddlflow.data.sources.source import ranges

    assert ranges(open_source("t.parquet", load("p").pipeline.data, Path("data")))
    found = look()
    assert errors(found) == 0


def test_few_ranges_for_the_workers_is_a_note(make: Make) -> None:
    make(site={"engine": {"use": "local", "workers": 3}})
    found = look()
    assert errors(found) == 0
    assert "1 range for 3 workers: some idle" in text_of(found, "source")


def test_a_csv_is_not_counted_but_looked_at(make: Make) -> None:
    make(data={"source": "t.csv"})
    pa.csv.write_csv(table(), "data/t.csv")
    found = look()
    assert errors(found) == 0
    assert "csv, 1 file, rows not counted yet, 1 range" in text_of(found, "source")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PAR1 and no footer", "cannot be read"),
    ],
)
def test_a_damaged_source(make: Make, content: bytes, said: str) -> None:
    make()
    Path("data/t.parquet").write_bytes(content)
    error = only_error(look())
    assert error.text.startswith("pipelines/p.yaml:")
    assert said in error.text


# ---- what the site has ----------------------------------------------------------------------


def test_shards_that_do_not_fit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    make()
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    error = only_error(look())
    assert error.what == "storage"
    assert "The shards need about" in error.text


class _Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


NOBODY = "http://127.0.0.1:9"  # the discard port: no server


def test_a_tracking_server(make: Make, server: str) -> None:
    make()
    found = look(f"tracking.uri={server}")
    assert text_of(found, "tracking") == f"{server} answers."
    found = look(f"tracking.uri={NOBODY}")
    assert errors(found) == 0  # the run goes on without it
    assert "does not answer. The run goes on without it" in text_of(found, "tracking")


def test_a_password_is_not_shown(make: Make) -> None:
    make()
    assert "hidden" not in json.dumps(
        [f.text for f in look("tracking.uri=http://me:hidden@127.0.0.1:9")]
    )


def test_a_prefect_server(make: Make, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert text_of(look(), "prefect") == f"{server}/api answers."
    monkeypatch.setenv("PREFECT_API_URL", f"{NOBODY}/api")
    assert "Start that server, or unset it." in only_error(look()).text


# ---- before a run ---------------------------------------------------------------------------


def test_a_run_raises_all_errors_of_the_input(make: Make) -> None:
    make()
    with pytest.raises(SpecError) as raised:
        precheck(load("p", changes=["report.histogram=zz", "infer.keys=[kex]"]))
    assert len(str(raised.value).splitlines()) == 2


def test_a_run_of_good_input_goes_on(make: Make) -> None:
    make(model={"use": "net:Net"}, files={"pipelines/net.py": NET})
    before = tree()
    precheck(load("p"))
    assert tree() == before


def test_counted() -> None:
    assert counted(1, "file") == "1 file"
    assert counted(2000, "file") == "2,000 files"
    assert counted(2, "class") == "2 classes"


# ---- what is computed -----------------------------------------------------------------------

DELAYS = {"delay": [float(i % 40) if i % 5 else None for i in range(200)]}


def test_what_is_derived_is_said_with_what_it_means_for_the_features(make: Make) -> None:
    derive = {"late": "delay > 15", "half": "a / 2"}
    where = "delay is not null"
    make(rows=table(**DELAYS), data={"label": "late", "derive": derive, "where": where})
    found = look()
    assert errors(found) == 0
    said = text_of(found, "source")
    assert "Computed: half (double), late (bool)." in said
    assert "No features, as label late is computed from the same columns: delay." in said
    assert "late has 2 classes in 160 of 200 rows in which data.where holds: " in text_of(
        found, "label"
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"derive": {"late": "dely > 15"}},
            "it reads column dely, which the source lacks. Did you",
        ),
        ({"derive": {"late": "delay > "}}, "it is no SQL expression: syntax error"),
        ({"derive": {"late": "max(delay) > 15"}}, "max() is not allowed."),
        ({"derive": {"late": "delay > 15", "a": "b"}}, "the source has a column a already."),
        ({"derive": {"late": "delay > 15"}, "where": "delay"}, "which is of type double. Write a"),
        ({"derive": {"late": "delay > 15"}}, "late is missing in 40 of 200 rows. Set data.label_"),
    ],
)
def test_a_wrong_expression_is_said_with_its_line(
    make: Make, data: dict[str, Any], said: str
) -> None:
    make(rows=table(**DELAYS), data={"label": "late", **data})
    (finding,) = wrong(look())
    assert said in finding.text
    assert finding.text.startswith("pipelines/p.yaml:")


def test_a_condition_that_holds_nowhere(make: Make) -> None:
    derive = {"late": "delay > 15"}
    make(rows=table(**DELAYS), data={"label": "late", "derive": derive, "where": "a < 0"})
    (finding,) = wrong(look())
    assert "No label in 0 of 200 rows in which data.where holds" in finding.text


def test_other_sources_need_only_what_the_features_read(make: Make) -> None:
    derive = {"late": "delay > 15", "half": "c / 2"}
    where = "delay is not null"
    make(
        rows=table(c=[1.0] * 200, **DELAYS),
        data={"label": "late", "derive": derive, "where": where, "exclude": ["key", "label", "c"]},
        infer={"source": "new.parquet"},
    )
    pq.write_table(table(c=[1.0] * 200), "data/new.parquet")
    assert errors(look()) == 0
    pq.write_table(table(), "data/new.parquet")
    (finding,) = wrong(look())
    assert "data.derive.half is 'c / 2': it reads column c, which the source lacks" in finding.text


def test_made_rows_may_be_derived_from(make: Make) -> None:
    data = {
        "source": {"use": "collider", "rows": 1000},
        "derive": {"heavy": "m_jj > 1"},
        "label": "label",
        "exclude": [],
    }
    make(data=data)
    found = look()
    assert errors(found) == 0
    assert "Computed: heavy (bool)." in text_of(found, "source")
