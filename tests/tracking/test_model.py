import json
import math
from pathlib import Path

import pandas
import pytest
import yaml

from ddlflow.errors import SpecError, TrackingError
from ddlflow.runs.installed import wheel
from ddlflow.tracking import open_run, send_pending
from ddlflow.tracking.fetch import fetch_model

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "made"
    (folder / "code").mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "weights.pt").write_bytes(b"weights")
    (folder / "code" / "net.py").write_text("x = 1\n")
    return folder


def log(run, folder, **more):
    from ddlflow.tracking.log_model import log_model

    settings = {
        "example": pandas.DataFrame({"pt": [1.5, math.nan], "jets": [1, 2], "kind": ["a", None]}),
        "predictions": pandas.DataFrame({"prediction": [0.25, 0.75]}),
        "digest": "d" * 64,
        "wheel": wheel(folder.parent / "wheels"),
        "pip_requirements": ["torch"],
    }
    return log_model(run, folder, **(settings | more))


def test_numbers_of_any_width_are_served_and_the_names_are_asked_for(uri, folder, tmp_path):
    """pandas makes floats of whole numbers where one is missing."""
    import mlflow

    example = pandas.DataFrame({"n": [1, 2], "x": [0.5, 1.5], "b": [True, False]})
    said = pandas.DataFrame({"prediction": [0.25, 0.75]})
    with begin(uri, tmp_path / "spool") as run:
        model_uri = log(run, folder, example=example, predictions=said)
    found = fetch_model(model_uri, uri, tmp_path / "to").parent.parent
    info = mlflow.models.Model.load(str(found))
    assert info.signature.inputs.input_names() == ["n", "x", "b"]
    enforce = mlflow.models.utils._enforce_schema
    for frame in (
        example,
        example.assign(n=[1.0, math.nan]),
        example.assign(x=[1, 2]),
        example.assign(b=[0, 1]),
    ):
        pandas.testing.assert_frame_equal(enforce(frame, info.signature.inputs), frame)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"missing inputs \['x'\]"):
        enforce(example.drop(columns="x"), info.signature.inputs)


def begin(uri, spool, **more):
    return open_run(uri, spool, experiment="models", name="m", tags={}, **more)


def test_a_logged_model_is_plain_code_and_tensors_with_a_signature_and_an_example(
    uri, folder, tmp_path
):
    with begin(uri, tmp_path / "spool") as run:
        model_uri = log(run, folder)
    assert model_uri == f"runs:/{run.run_id}/model"
    found = fetch_model(model_uri, uri, tmp_path / "to")
    assert (found / "code" / "net.py").read_text() == "x = 1\n"
    assert (found / "weights.pt").read_bytes() == b"weights"
    wrapping = found.parent.parent
    assert not list(wrapping.rglob("*.pkl"))
    described = yaml.safe_load((wrapping / "MLmodel").read_text())
    flavor = described["flavors"]["python_function"]
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert Path(flavor["model_code_path"]).name == "served.py"
    assert (wrapping / "served.py").exists()
    assert described["run_id"] == run.run_id
    assert '"name": "prediction"' in described["signature"]["outputs"]
    assert [name in described["signature"]["inputs"] for name in ("pt", "jets", "kind")] == [1] * 3
    # ddlflow itself comes from the model's own folder, never from an index.
    listed = (wrapping / "requirements.txt").read_text().split()
    assert listed[0] == "wheels/ddlflow-0.1.0-py3-none-any.whl"
    assert (wrapping / listed[0]).is_file()
    assert not any(line.startswith("ddlflow") for line in listed)
    environment = yaml.safe_load((wrapping / "conda.yaml").read_text())["dependencies"][-1]
    assert environment["pip"][0] == listed[0]
    example = json.loads((wrapping / "input_example.json").read_text())
    assert example["data"][0] == [1.5, 1, "a"]
    assert math.isnan(example["data"][1][0])


def test_a_registered_model_is_found_by_version_alias_and_latest(uri, client, folder, tmp_path):
    for version in (1, 2):
        (folder / "model.json").write_text(str(version))
        with begin(uri, tmp_path / "spool") as run:
            model_uri = log(run, folder, register_as="higgs", digest=str(version))
            assert model_uri == f"models:/higgs/{version}"
            assert log(run, folder, register_as="higgs", digest=str(version)) == model_uri
    client.set_registered_model_alias("higgs", "best", "1")
    (output,) = client.get_run(run.run_id).outputs.model_outputs

    def content(which):
        return (fetch_model(which, uri, tmp_path / "to") / "model.json").read_text()

    assert content("models:/higgs/1") == "1"
    assert content("models:/higgs@best") == "1"
    assert content("models:/higgs/2") == "2"
    assert content("models:/higgs/latest") == "2"
    assert content(f"models:/{output.model_id}") == "2"
    assert client.get_model_version("higgs", "2").tags["ddlflow.run"] == run.local_id

    for wrong, hint in [
        ("models:/higs/1", "There are: higgs"),
        ("models:/higgs/7", "The newest is 2"),
        ("models:/higgs/one", "The newest is 2"),
        ("models:/higgs@worst", "It has best"),
        ("models:/higgs", "names no version"),
        ("models:/m-0123", "There is no model models:/m-0123"),
        (f"runs:/{run.run_id}/other", "It has model"),
        ("runs:/0123/model", "There is no model runs:/0123/model"),
        ("nowhere", "There is no model folder 'nowhere'"),
    ]:
        with pytest.raises(SpecError, match=hint):
            fetch_model(wrong, uri, tmp_path / "to")


def test_a_model_logged_during_an_outage_arrives_once(uri, client, folder, tmp_path):
    run = begin("http://127.0.0.1:9", tmp_path / "spools" / "a", say=lambda text: None)
    assert log(run, folder, register_as="late") is None
    run.set_terminated("FINISHED")
    run.close()
    # The same store comes back, here under another address.
    records = tmp_path / "spools" / "a" / "ops.jsonl"
    records.write_text(records.read_text().replace("http://127.0.0.1:9", uri))
    (sentence,) = send_pending(tmp_path / "spools")
    assert "were sent" in sentence
    fetched = fetch_model("models:/late/1", uri, tmp_path / "to")
    assert (fetched / "weights.pt").exists()


def test_a_model_that_was_cut_off_while_sending_is_replaced(uri, client, folder, tmp_path):
    run = begin(uri, tmp_path / "a")
    model_uri = log(run, folder)
    run.set_terminated("FAILED")
    run.close()
    (tmp_path / "a" / "sent.json").write_text("")
    half = client.create_logged_model(
        client.get_run(run.run_id).info.experiment_id,
        "model",
        source_run_id=run.run_id,
        tags={"ddlflow.model_digest": "d" * 64},
    )
    assert "were sent" in send_pending(tmp_path)[0]
    models = client.search_logged_models([half.experiment_id], f"source_run_id = '{run.run_id}'")
    assert [str(model.status) for model in models] == ["READY"]
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1
    assert fetch_model(model_uri, uri, tmp_path / "to").is_dir()


def test_a_folder_is_taken_as_it_is(folder, tmp_path):
    assert fetch_model(str(folder), "sqlite:///none.db", tmp_path) == folder
    assert fetch_model(folder.as_uri(), "sqlite:///none.db", tmp_path) == folder
    assert not Path("none.db").exists()


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(SpecError, match="there is no tracking database"):
        fetch_model("models:/a/1", f"sqlite:///{tmp_path}/none.db", tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_no_fault_of_the_input(tmp_path):
    with pytest.raises(TrackingError, match=r"cannot be fetched from http://a:\*\*\*@127"):
        fetch_model("models:/a/1", "http://a:pw@127.0.0.1:9", tmp_path / "to")


@pytest.mark.parametrize("path", ["../outside", "artifacts/m", None])
def test_a_model_that_is_not_ours_is_refused(tmp_path, path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.json").write_text("{}")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(SpecError, match="neither model"):
        fetch_model(str(foreign), "sqlite:///none.db", tmp_path)
    flavors = {"python_function": {"artifacts": {"model": {"path": path}}}, "sklearn": {}}
    if path is None:
        del flavors["python_function"]["artifacts"]
    (foreign / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    with pytest.raises(SpecError, match=r"of the kind sklearn, .* mostly pickles"):
        fetch_model(str(foreign), "sqlite:///none.db", tmp_path)


def test_a_folder_that_is_no_model_is_not_logged(uri, tmp_path):
    with begin(uri, tmp_path / "spool") as run, pytest.raises(TrackingError, match=r"model\.json"):
        log(run, tmp_path)


def test_a_model_whose_example_mlflow_cannot_check_is_logged_without_it(
    uri, client, folder, tmp_path
):
    """MLflow cannot read a column without a name back from an example."""
    said = []
    nameless = pandas.DataFrame({"new\nline": [1.5, 2.5], "": [1.0, 2.0]})
    with begin(uri, tmp_path / "spool", say=said.append) as run:
        model_uri = log(run, folder, example=nameless)
    assert model_uri == f"runs:/{run.run_id}/model"
    found = fetch_model(model_uri, uri, tmp_path / "to")
    assert (found / "weights.pt").read_bytes() == b"weights"
    (note,) = said
    assert note == (
        "note: the model is logged without signature and example: Model is missing inputs [1]. "
        "Note that there were extra inputs: ['']."
    )
    (model,) = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])[:1]
    assert str(model.status) == "READY"


def test_a_model_that_mlflow_will_not_take_is_an_error_and_leaves_no_dead_uri(
    uri, client, folder, tmp_path
):
    with begin(uri, tmp_path / "spool", say=lambda text: None) as run:
        before = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
        (folder / "weights.pt").unlink()
        (folder / "weights.pt").symlink_to(tmp_path / "gone")
        with pytest.raises(TrackingError, match="MLflow does not take it"):
            log(run, folder)
        after = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
    assert len(after) == len(before)
    with pytest.raises(SpecError):
        fetch_model(f"runs:/{run.run_id}/model", uri, tmp_path / "to")
