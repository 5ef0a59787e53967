"""The pipeline: WHAT to do. One pydantic model a section of the YAML file.

Nothing here names a host, a secret or a path outside the site's ``data_root``.
"""

from typing import Annotated

from pydantic import Field, model_validator

from ddlflow.spec.cv import Cv, FoldKind
from ddlflow.spec.data import Data, Made, MadeName, Split
from ddlflow.spec.model import LinearSection, MlpSection, Model
from ddlflow.spec.search import Pruning, Search, SearchRange, Sweep
from ddlflow.spec.section import NAME, REGISTERED, USER_CODE, Fraction, Section, Seed, UserCode
from ddlflow.spec.tables import PlaceOrTable
from ddlflow.spec.train import (
    Adagrad,
    Adam,
    AnyOptimizer,
    EarlyStopping,
    Lbfgs,
    ObjectiveName,
    Optimizer,
    Penalty,
    RmsProp,
    Schedule,
    Sgd,
    Train,
    Training,
    UserObjective,
)

__all__ = [
    "NAME",
    "REGISTERED",
    "USER_CODE",
    "Adagrad",
    "Adam",
    "AnyOptimizer",
    "Cv",
    "Data",
    "EarlyStopping",
    "FoldKind",
    "Fraction",
    "Infer",
    "Lbfgs",
    "LinearSection",
    "Made",
    "MadeName",
    "MlpSection",
    "Model",
    "ObjectiveName",
    "Optimizer",
    "Penalty",
    "Pipeline",
    "Pruning",
    "Report",
    "RmsProp",
    "Schedule",
    "Search",
    "SearchRange",
    "Section",
    "Seed",
    "Sgd",
    "Split",
    "Sweep",
    "Train",
    "Training",
    "UserCode",
    "UserObjective",
]


class Report(Section):
    """What the report draws beyond the objective's own plots."""

    histogram: str | None = None  # a numeric feature, drawn for each class


class Infer(Section):
    """The last stage of a run: the trained model over a source."""

    source: PlaceOrTable | None = None  # none: data.test_source, or else data.source
    keys: list[str] = []  # columns of the source that are copied beside each prediction


class Pipeline(Section):
    """A pipeline file."""

    name: Annotated[str, Field(pattern=NAME)]
    data: Data
    model: Model
    train: Train
    cv: Cv | None = None
    report: Report = Report()
    infer: Infer = Infer()
    search: Search | None = None
    sweep: Sweep = Sweep()
    register_as: Annotated[str, Field(pattern=REGISTERED)] | None = Field(None, alias="register")

    @model_validator(mode="after")
    def _class_weights(self) -> "Pipeline":
        if self.train.class_weights is not None and self.labels == "regression":
            raise ValueError(
                "train.class_weights is set, and the label of a regression has no classes. Remove "
                "it, or name a column of weights in data.weight"
            )
        return self

    @model_validator(mode="after")
    def _one_optimum(self) -> "Pipeline":
        if isinstance(self.train.optimizer, Lbfgs) and not isinstance(self.model, LinearSection):
            raise ValueError(
                f"train.optimizer is lbfgs, which is for model linear, and the model is "
                f"{self.model.use}. Use adam"
            )
        return self

    @model_validator(mode="after")
    def _always_fused(self) -> "Pipeline":
        """What parts trainings whatever the rows; of the user's code only a trial can tell."""
        apart = {
            "data.weight": self.data.weight is not None,
            "train.class_weights": self.train.class_weights is not None,
            f"train.precision: {self.train.precision}": self.train.precision != "float32",
            "train.optimizer.use: lbfgs": isinstance(self.train.optimizer, Lbfgs),
            "model.batch_norm": isinstance(self.model, MlpSection) and self.model.batch_norm,
        }
        found = [name for name, is_so in apart.items() if is_so]
        if self.sweep.fuse == "always" and found:
            raise ValueError(
                f"sweep.fuse is always, and trainings with {found[0]} are trained apart. "
                "Set sweep.fuse: auto"
            )
        return self

    @model_validator(mode="after")
    def _folds(self) -> "Pipeline":
        if self.cv is None:
            return self
        if self.cv.kind == "stratified" and self.labels == "regression":
            raise ValueError(
                "cv.kind is stratified, and the label of a regression has no classes. "
                "Set cv.kind to plain, or leave it out"
            )
        column = self.cv.by
        if column and self.data.features == "all" and column not in self.data.exclude:
            exclude = [*self.data.exclude, column]  # written out, so that every reader knows
            self.__dict__["data"] = self.data.model_copy(update={"exclude": exclude})
        return self

    @property
    def labels(self) -> ObjectiveName:
        """How labels are read: the objective's kind."""
        return self.train.labels
