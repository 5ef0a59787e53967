"""Predictions of a whole source: its order, its keys, each row once, whatever was killed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hosts import half_written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddlflow.errors import DataError, DdlflowError, SpecError
from ddlflow.infer.model import load_model
from ddlflow.infer.predict import JOB, SUCCESS, infer, predict_range


def in_turn(function: Any, items: Any, _: str, /) -> Any:
    return map(function, items)


def predicted(made: Any, location: str, out: Path, *, keys: Any = ("id",), **more: Any) -> Any:
    return infer(
        made.folder,
        location,
        out,
        keys=keys,
        data_root=made.root,
        threads=1,
        map_over=more.pop("map_over", in_turn),
        **more,
    )


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def rows(out: Path) -> pa.Table:
    """What a reader of the folder gets: all files by name."""
    return pa.concat_tables([pq.read_table(path) for path in parts(out)])


def expected(made: Any, keys: list[str]) -> pa.Table:
    """Predicted range by range, as a pass of other rows may differ in the last bit."""
    model = load_model(made.folder)
    tables = []
    for start in range(0, made.source.num_rows, 200):
        (batch,) = made.source.slice(start, 200).combine_chunks().to_batches()
        found = model.predict(batch)
        columns = {key: batch[key] for key in keys} | dict(
            zip(found.schema.names, found.columns, strict=True)
        )
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def whole_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row group of 200 rows is a range of its own."""
    from ddlflow.data.sources import source

    monkeypatch.setattr(source, "PIECE_ROWS", 200)


pytestmark = pytest.mark.usefixtures("whole_ranges")


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_every_row_in_the_sources_order_beside_its_keys(
    trained: Callable[..., Any], tmp_path: Path, labels: str
) -> None:
    made = trained(labels)
    done = predicted(made, "t.parquet", tmp_path / "out", keys=["id", "town"]).to_json()
    assert rows(tmp_path / "out").equals(expected(made, ["id", "town"]))
    assert [path.name for path in parts(tmp_path / "out")] == [
        f"part-{k:06d}.parquet" for k in range(5)
    ]
    assert done == json.loads((tmp_path / "out" / SUCCESS).read_text())
    assert done["rows"] == 900
    assert [file["rows"] for file in done["files"]] == [200, 200, 200, 200, 100]
    assert done["model_digest"] == made.result["model_digest"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [JOB, SUCCESS, *(path.name for path in parts(tmp_path / "out"))]
    )


def test_keys_may_be_none_a_label_a_feature_or_given_twice(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made = trained()
    for number, (keys, names) in enumerate(
        [((), []), (["y"], ["y"]), (["a", "id", "a"], ["a", "id"])]
    ):
        predicted(made, "t.parquet", tmp_path / str(number), keys=keys)
        found = rows(tmp_path / str(number))
        assert found.schema.names == [*names, "prediction", "probability"]
        for name in names:
            assert found[name].to_pylist() == made.source[name].to_pylist()


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    left=st.lists(st.sampled_from(["whole", "nothing", "half"]), min_size=5, max_size=5),
    succeeded=st.booleans(),
    backwards=st.booleans(),
)
def test_after_a_kill_at_any_moment_nothing_is_missing_or_doubled(
    trained: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    left: list[str],
    succeeded: bool,
    backwards: bool,
) -> None:
    made, out = trained(), tmp_path_factory.mktemp("killed") / "out"
    predicted(made, "t.parquet", out)
    before = files_of(out)
    untouched = {}
    for path, is_left in zip(parts(out), left, strict=True):
        if is_left == "whole":
            untouched[path] = path.stat().st_mtime_ns
            continue
        path.unlink()
        if is_left == "half":
            half_written(path, before[path.name][:1000])
    if not succeeded:
        (out / SUCCESS).unlink()

    def a_map(function: Any, items: Any, _: str, /) -> Any:
        if not backwards:
            return map(function, items)
        return reversed([function(item) for item in reversed(items)])

    predicted(made, "t.parquet", out, map_over=a_map)
    assert files_of(out) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


class Killed(Exception):  # noqa: N818 - no error of anyone's
    """Stands in for a kill."""


@pytest.mark.parametrize("after", [0, 1, 4])
def test_success_is_said_last(trained: Callable[..., Any], tmp_path: Path, after: int) -> None:
    made, out = trained(), tmp_path / "out"

    def dying(function: Any, items: Any, _: str, /) -> Any:
        for item in items[:after]:
            yield function(item)
        raise Killed

    for _ in range(2):  # the second time a folder that was complete is gone through again
        with pytest.raises(Killed):
            predicted(made, "t.parquet", out, map_over=dying)
        assert not (out / SUCCESS).exists()
        assert len(parts(out)) >= after
        predicted(made, "t.parquet", out)
        assert (out / SUCCESS).exists()
        assert rows(out).equals(expected(made, ["id"]))
        for path in parts(out)[after:]:
            path.unlink()


def test_a_range_that_fails_leaves_no_file_of_its_own(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made = trained()
    broken = made.source.set_column(
        1, "a", pa.array([str(v) if k != 500 else "wrong" for k, v in enumerate(range(900))])
    )
    pq.write_table(broken, tmp_path / "broken.parquet", row_group_size=200)
    with pytest.raises(DataError, match="Column a holds"):
        predicted(made, str(tmp_path / "broken.parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    predicted(made, "t.parquet", tmp_path / "out")
    for path in (*parts(tmp_path / "out")[2:], tmp_path / "out" / SUCCESS):
        path.unlink()  # a command that was killed has left two files: they are kept
    shutil.copy(tmp_path / "broken.parquet", made.root / "broken.parquet")
    with pytest.raises(SpecError, match="another model, source or keys"):
        predicted(made, "broken.parquet", tmp_path / "out")
    assert len(parts(tmp_path / "out")) == 2


def test_the_folder_of_another_job_is_refused_and_left_as_it_is(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made, other, out = trained(), trained("regression"), tmp_path / "out"
    predicted(made, "t.parquet", out)
    before = files_of(out)
    with pytest.raises(SpecError, match="another model, source or keys"):
        predicted(other, "t.parquet", out)
    with pytest.raises(SpecError, match="another model, source or keys"):
        predicted(made, "t.parquet", out, keys=["town"])
    pq.write_table(made.source.slice(0, 300), made.root / "less.parquet", row_group_size=200)
    with pytest.raises(SpecError, match="another model, source or keys"):
        predicted(made, "less.parquet", out)
    assert files_of(out) == before

    done = predicted(made, "less.parquet", out, fresh=True)
    assert done.rows == rows(out).num_rows == 300
    assert len(parts(out)) == 2


def test_a_folder_of_someone_elses_files_is_refused_even_with_fresh(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made, out = trained(), tmp_path / "out"
    out.mkdir()
    (out / "thesis.parquet").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(SpecError, match="holds other files"):
            predicted(made, "t.parquet", out, fresh=fresh)
    assert [path.name for path in out.iterdir()] == ["thesis.parquet"]


def test_a_command_that_was_killed_as_it_began_is_gone_on_with(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made, out = trained(), tmp_path / "out"
    out.mkdir()
    half_written(out / JOB, b'{"model_di')
    predicted(made, "t.parquet", out)
    assert rows(out).num_rows == 900


def test_what_is_missing_in_the_source_is_named_before_anything_is_written(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made, out = trained(), tmp_path / "out"
    pq.write_table(
        made.source.rename_columns(["id", "a", "b", "twon", "year", "y"]), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match=r"no column 'town' that the model reads.*twon"):
        predicted(made, str(tmp_path / "t.parquet"), out)
    with pytest.raises(DataError, match=r"no column 'ids' to keep as a key.*id"):
        predicted(made, "t.parquet", out, keys=["ids"])
    with pytest.raises(DdlflowError, match="nothing"):
        predicted(made, "nothing.parquet", out)
    assert not out.exists()


def test_a_key_with_the_name_of_a_prediction_is_refused(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made = trained()
    table = made.source.append_column("prediction", made.source["id"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SpecError, match="'prediction' has the name of a column"):
        predicted(made, str(tmp_path / "t.parquet"), tmp_path / "out", keys=["prediction"])
    assert not (tmp_path / "out").exists()
    # A column that is not asked for may be called as it likes.
    predicted(made, str(tmp_path / "t.parquet"), tmp_path / "out")


@pytest.mark.parametrize("name", ["t.csv", "t.feather", "t.jsonl"])
def test_a_source_of_another_format_than_the_model_was_trained_on(
    trained: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    made, path = trained(), tmp_path / name
    table = made.source.drop(["y"])
    if name == "t.csv":
        pa.csv.write_csv(table, path)
    elif name == "t.feather":
        pa.feather.write_feather(table, path)
    else:
        lines = [
            {k: v for k, v in row.items() if v == v}  # noqa: PLR0124 - JSON has no NaN
            for row in table.to_pylist()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    predicted(made, str(path), tmp_path / "out")
    found, wanted = rows(tmp_path / "out"), expected(made, ["id"])
    ids = wanted["id"].to_pylist()
    assert found["id"].to_pylist() == ([str(i) for i in ids] if name == "t.csv" else ids)
    np.testing.assert_allclose(
        found["probability"].to_numpy(), wanted["probability"].to_numpy(), rtol=1e-5
    )


def test_a_folder_with_values_in_its_names_gives_keys(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made = trained()
    for run in (1, 2):
        folder = tmp_path / "source" / f"run={run}"
        folder.mkdir(parents=True)
        pq.write_table(made.source.slice(0, 10 * run), folder / "t.parquet")
    predicted(made, str(tmp_path / "source"), tmp_path / "out", keys=["run", "id"])
    found = rows(tmp_path / "out")
    assert found["run"].to_pylist() == [1] * 10 + [2] * 20
    assert found["id"].to_pylist() == [*range(10), *range(20)]


def test_a_worker_takes_the_model_that_the_folder_holds_now(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    """A worker of a cluster lives longer than a command, and keeps the model it has loaded."""
    binary, other = trained(), trained("regression")
    folder = tmp_path / "model"
    names = []
    for number, made in enumerate((binary, other)):
        shutil.copytree(made.folder, folder, dirs_exist_ok=True)
        infer(
            folder,
            "t.parquet",
            tmp_path / str(number),
            keys=[],
            data_root=binary.root,
            threads=1,
            map_over=in_turn,
        )
        names.append(rows(tmp_path / str(number)).schema.names)
    assert names == [["prediction", "probability"], ["prediction"]]


def test_a_task_is_small(trained: Callable[..., Any], tmp_path: Path) -> None:
    """It travels to a worker for each range."""
    import pickle

    seen = []

    def looking(function: Any, items: Any, _: str, /) -> Any:
        assert function is predict_range
        seen.extend(len(pickle.dumps(item)) for item in items)
        return map(function, items)

    predicted(trained(), "t.parquet", tmp_path / "out", map_over=looking)
    assert len(seen) == 5
    assert max(seen) < 4000
