"""Two YAML files and ``--set`` values -> a request, or every error at once with its place."""

from pathlib import Path

import pytest

from ddlflow.errors import SpecError
from ddlflow.spec import load as load_
from ddlflow.spec.load import load, load_site
from ddlflow.spec.pipeline import Adam, MlpSection

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """\
name: first
data:
  source: events.parquet
  label: label
model: {use: mlp, hidden: [8]}
train:
  objective: binary
  epochs: 2
"""
SITE = "engine: {use: local, workers: 1}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "pipelines/first.yaml").write_text(PIPELINE)
    (tmp_path / "conf/local.yaml").write_text(SITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors_of(project: Path, text: str = PIPELINE, *changes: str, site: str = SITE) -> list[str]:
    """The lines of the error that these files and changes give."""
    (project / "pipelines/first.yaml").write_text(text)
    (project / "conf/local.yaml").write_text(site)
    with pytest.raises(SpecError) as raised:
        load("first", "local", changes)
    return str(raised.value).splitlines()


# ---- what is found by which name ------------------------------------------------------------


def test_a_pipeline_and_a_site_by_name(project: Path) -> None:
    request = load("first")
    assert request.pipeline.name == "first"
    assert request.pipeline.model == MlpSection(use="mlp", hidden=[8])
    assert request.site.engine.use == "local"
    assert request.pipeline_path == project / "pipelines/first.yaml"
    assert request.code_folder == project / "pipelines"


@pytest.mark.parametrize("name", ["elsewhere/mine.yaml", "elsewhere/folder", "elsewhere/folder/"])
def test_a_pipeline_by_path(project: Path, name: str) -> None:
    folder = project / "elsewhere/folder"
    folder.mkdir(parents=True)
    (project / "elsewhere/mine.yaml").write_text(PIPELINE)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    request = load(name)
    assert request.code_folder == (folder if "folder" in name else folder.parent).relative_to(
        project
    )


def test_a_folder_in_pipelines_by_name(project: Path) -> None:
    folder = project / "pipelines/deep"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("first", "deep"))
    assert load("deep").code_folder == folder
    assert load_.names("pipelines", "pipeline") == ["deep", "first"]


def test_a_site_by_path_and_by_name(project: Path) -> None:
    (project / "conf/big.yaml").write_text("engine: {use: local, workers: 9}\n")
    (project / "mine.yaml").write_text("engine: {use: local, workers: 5}\n")
    assert load("first", "big").site.engine.workers == 9
    assert load("first", "mine.yaml").site.engine.workers == 5
    assert load_site(str(project / "mine.yaml")).engine.workers == 5


def test_a_name_that_is_not_there_lists_those_that_are(project: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load("firts")
    assert str(raised.value) == (
        "There is no pipeline 'firts': pipelines/firts.yaml does not exist. "
        "Did you mean 'first'? Known here: first."
    )
    with pytest.raises(SpecError, match=r"no site 'gpu': conf/gpu.yaml .* Known here: local\."):
        load("first", "gpu")


def test_outside_of_a_project_the_package_has_pipelines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("quickstart").pipeline_path == ROOT / "pipelines/quickstart.yaml"


def test_a_project_without_a_room_of_its_own_takes_the_packages(project: Path) -> None:
    (project / "conf/local.yaml").unlink()
    (project / "conf").rmdir()
    request = load("first")
    assert request.pipeline_path == project / "pipelines/first.yaml"
    assert request.site_path == ROOT / "conf/local.yaml"


@pytest.mark.parametrize(
    ("pipeline", "site"),
    [
        (pipeline.stem, site.stem)
        for pipeline in sorted((ROOT / "pipelines").glob("*.yaml"))
        for site in sorted((ROOT / "conf").glob("*.yaml"))
    ],
)
def test_what_the_repository_ships_is_valid(
    pipeline: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert load(pipeline, site).pipeline.name == pipeline


# ---- every error at once, each with its place -----------------------------------------------


def test_all_errors_of_both_files_and_of_set_come_at_once(project: Path) -> None:
    text = PIPELINE.replace("  label: label\n", "").replace("epochs: 2", "epohcs: 2")
    found = errors_of(project, text, "train.seed=x", "nonsense", site="engine: {workers: 0}\n")
    by_place = dict(line.split(": ", 1) for line in found)
    assert len(found) == len(by_place) == 5
    assert by_place["--set nonsense"] == "expected KEY=VALUE, such as train.epochs=3."
    assert by_place["pipelines/first.yaml:2"] == "data.label is missing. Set it."
    assert by_place["pipelines/first.yaml:7"].startswith(
        "train.epohcs is no known key. Did you mean 'epochs'?"
    )
    assert by_place["--set train.seed=x"].startswith("train.seed is 'x'; expected a whole number")
    assert by_place["conf/local.yaml:1"].startswith("engine.workers is 0; expected auto or a whole")


def test_the_designs_own_example(project: Path) -> None:
    assert errors_of(project, PIPELINE.replace("epochs: 2", "epochs: 0")) == [
        "pipelines/first.yaml:8: train.epochs is 0; expected auto or a whole number >= 1. "
        "Set train.epochs, or leave it out for auto."
    ]


def test_a_key_of_the_other_file_is_sent_there(project: Path) -> None:
    assert errors_of(project, PIPELINE + "engine: {use: dask}\n") == [
        "pipelines/first.yaml:9: engine is no key of this file; it belongs in the site file."
    ]
    assert errors_of(project, site=SITE + "train: {epochs: 3}\n") == [
        "conf/local.yaml:2: train is no key of this file; it belongs in the pipeline file."
    ]


def test_a_key_that_is_given_twice(project: Path) -> None:
    assert errors_of(project, PIPELINE + "  epochs: 3\n") == [
        "pipelines/first.yaml:9: train.epochs is given twice, first at pipelines/first.yaml:8."
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [1, 2\n", "pipelines/first.yaml:2: this is no valid YAML: expected ',' or ']'"),
        ("name: x\n\ty: 1\n", "pipelines/first.yaml:2: this is no valid YAML: "),
        ("", "pipelines/first.yaml is empty; expected keys and values"),
        ("- a\n- b\n", "pipelines/first.yaml: expected keys and values (`name: ...`), found ['a'"),
        ("just words\n", "pipelines/first.yaml: expected keys and values"),
        ("a: 1\n---\nb: 2\n", "pipelines/first.yaml:2: this is no valid YAML"),
        ("a: *b\n", "pipelines/first.yaml:1: this is no valid YAML: found undefined alias"),
        ("a: !!python/object:os.system x\n", "pipelines/first.yaml:1: this is no valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping(project: Path, text: str, said: str) -> None:
    (line,) = errors_of(project, text)
    assert line.startswith(said)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00name", b"name: \x00\n"])
def test_a_file_that_is_no_text(project: Path, content: bytes) -> None:
    (project / "pipelines/first.yaml").write_bytes(content)
    with pytest.raises(SpecError, match=r"^pipelines/first.yaml is no UTF-8 text"):
        load("first")


def test_a_plan_knows_where_its_values_were_set(project: Path) -> None:
    request = load("first", changes=["model.dropout=0.5"])
    assert request.place("data.label") == "pipelines/first.yaml:4"
    assert request.place("data.exclude") == "pipelines/first.yaml:2"  # the section around it
    assert request.place("model.dropout") == "--set model.dropout=0.5"
    assert request.place("engine.workers") == "conf/local.yaml:1"
    assert request.place("infer.keys") == "pipelines/first.yaml"


# ---- YAML's traps ---------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("2E5", 2e5), (".5e1", 5.0)])
def test_a_number_with_an_exponent_is_a_number(project: Path, text: str, value: float) -> None:
    request = load("first", changes=[f"model={{use: 'net:Net', rate: {text}}}"])
    assert request.pipeline.model.arguments == {"rate": value}  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["yes", "true", "on"])
def test_yes_is_no_number(project: Path, text: str) -> None:
    (line,) = errors_of(project, PIPELINE.replace("epochs: 2", f"epochs: {text}"))
    assert "train.epochs is 'true'; expected auto or a whole number" in line


def test_a_name_that_yaml_reads_as_something_else(project: Path) -> None:
    (line,) = errors_of(project, PIPELINE.replace("label: label", "label: no"))
    assert line == (
        "pipelines/first.yaml:4: data.label is False; expected text. Put it in quotes if it is a "
        "name. Set data.label."
    )


# ---- --set ----------------------------------------------------------------------------------


def test_set_is_typed_as_the_file_is(project: Path) -> None:
    request = load(
        "first",
        changes=[
            "train.epochs=3",
            "train.optimizer={use: adam, lr: 1e-2, betas: [0.8, 0.9]}",
            "data.features=[a, b]",
            "data.split.test=0.2",
            "register=best",
            "engine.workers=2",
            "train.clip_norm=",
        ],
    )
    assert request.pipeline.train.epochs == 3
    assert request.pipeline.train.optimizer == Adam(use="adam", lr=0.01, betas=(0.8, 0.9))
    assert request.pipeline.data.features == ["a", "b"]
    assert request.pipeline.data.split.test == 0.2
    assert request.pipeline.register_as == "best"
    assert request.pipeline.train.clip_norm is None
    assert request.site.engine.workers == 2


def test_the_last_set_of_a_key_counts(project: Path) -> None:
    assert load("first", changes=["train.epochs=3", "train.epochs=4"]).pipeline.train.epochs == 4


def test_a_text_with_an_equals_sign(project: Path) -> None:
    uri = "sqlite:///x.db?timeout=5"
    assert load("first", changes=[f"tracking.uri={uri}"]).site.tracking.uri == uri


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.epochs", "expected KEY=VALUE, such as train.epochs=3."),
        ("=3", "expected KEY=VALUE, such as train.epochs=3."),
        ("train..epochs=3", "expected KEY=VALUE, such as train.epochs=3."),
        ("trian.epochs=3", "there is no key 'trian'. Did you mean 'train'?"),
        ("zzz=3", "there is no key 'zzz'. Known here: cv, data, data_root,"),
        ("train.epochs=[1", "'[1' is no valid YAML value."),
        ("train.epochs=many", "train.epochs is 'many'; expected auto or a whole number."),
        ("train.epochs=3.5", "train.epochs is 3.5; expected auto or a whole number."),
        ("train.epoch=3", "train.epoch is no known key. Did you mean 'epochs'?"),
        ("train.epochs.x=3", "train.epochs is 2, so it has no x. Set train.epochs whole."),
        ("model.hidden.0=3", "model.hidden is [8], so it has no 0. Set model.hidden whole."),
        ("model.use=mpl", "model.use is 'mpl'; expected linear, mlp or module:name."),
        (
            "train.optimizer.lr=0.1",
            "train.optimizer.use is missing; expected sgd, adagrad, rmsprop, adam, adamw or lbfgs.",
        ),
        (
            "data.split.validation=0.95",
            "data.split: validation 0.95 and test 0.1 leave no row to train on; their sum",
        ),
    ],
)
def test_a_wrong_set_names_itself(project: Path, change: str, said: str) -> None:
    (line,) = errors_of(project, PIPELINE, change)
    assert line.startswith(f"--set {change}: {said}")


def test_nothing_is_written(project: Path) -> None:
    before = sorted(project.rglob("*"))
    load("first", changes=["train.epochs=3"])
    errors_of(project, PIPELINE, "x=1")
    assert sorted(project.rglob("*")) == before
