"""The pipeline: WHAT to do. One pydantic model a section of the YAML file.

Nothing here names a host, a secret or a path outside the site's ``data_root``.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

# `module:name` or `package.module:name`: user code, beside the pipeline or installed.
USER_CODE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
NAME = r"^[A-Za-z0-9][\w.-]*$"
REGISTERED = r"^[^/:]+$"
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A section of a file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, values: Any) -> Any:
        """Refuses ``epochs: yes``: Python takes true for 1, the text is taken for no number."""
        if not isinstance(values, dict):
            return values
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {
            key: str(value).lower()
            if isinstance(value, bool) and _is_number(kinds.get(key))
            else value
            for key, value in values.items()
        }


def _is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_is_number, get_args(annotation)))


class UserCode(BaseModel):
    """User code by name; every other key is an argument of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = Field(pattern=USER_CODE)

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


# ---- data ----------------------------------------------------------------------------------


MadeName = Literal["collider", "particles"]


class Made(Section):
    """A source that is made (``ddlflow.data.made``) and kept under the storage."""

    use: MadeName
    rows: PositiveInt
    seed: Seed = 1


class Split(Section):
    """Fractions (seeded, exactly stratified where the label is a class), or a column of names."""

    validation: Fraction = 0.1
    test: Fraction = 0.1
    column: str | None = None  # holds train, validation or test in each row

    @model_validator(mode="after")
    def _one_kind(self) -> "Split":
        if self.column is not None:
            for name in ("validation", "test"):
                if name not in self.model_fields_set:
                    self.__dict__[name] = 0.0  # written out, the section stays valid
            if self.validation or self.test:
                raise ValueError("a split is either fractions or a column. Remove one of them")
        if self.column is None and self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} leave no row to train on; "
                "their sum has to be below 1"
            )
        return self


class Data(Section):
    """Where the rows are and which columns mean what."""

    source: str | Made  # a file, glob, folder or fsspec URL; relative to the site's data_root
    test_source: str | None = None  # a table of its own that is the test split
    format: Literal["auto", "parquet", "csv", "arrow", "jsonl"] = "auto"
    header: bool = True  # CSV: does the first line name the columns? else c0, c1, ...
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    label: str
    features: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    exclude: list[
        str
    ] = []  # columns that "all" leaves out (keys, the split column is left out too)
    categorical: list[str] = []  # columns of whole numbers to read as categories; text always is
    rare_below: PositiveInt = 10  # categories seen in fewer rows share the bucket of unseen ones
    missing: Literal["impute", "refuse", "drop"] = "impute"  # null and NaN in a feature
    infinite: Literal["impute", "refuse", "drop"] = "impute"  # impute: as if it were missing
    split: Split = Split()
    seed: Seed = 7

    @model_validator(mode="after")
    def _test_once(self) -> "Data":
        if self.test_source is not None:
            if "test" not in self.split.model_fields_set:
                self.__dict__["split"] = self.split.model_copy(update={"test": 0.0})
            if self.split.test or self.split.column is not None:
                raise ValueError(
                    "test_source and a split that makes test rows exclude each other. Remove "
                    "test_source, or split.test and split.column"
                )
        return self

    @property
    def test_fraction(self) -> float:
        """The part of the source's rows that is the test split."""
        return self.split.test


# ---- model ---------------------------------------------------------------------------------


class Linear(Section):
    """A linear or logistic regression: one affine map."""

    use: Literal["linear"]
    embedding: PositiveInt | None = None  # width of a category's vector; none: one-hot


class Mlp(Section):
    """A multilayer perceptron."""

    use: Literal["mlp"]
    hidden: Annotated[list[PositiveInt], Field(min_length=1)] = [100]
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"
    dropout: Fraction = 0.0
    batch_norm: bool = False
    start: Literal["xavier", "he"] = "he"
    embedding: PositiveInt | None = None  # width of a category's vector; none: by its vocabulary


def _built_in_or_user(value: Any) -> str:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    return "user" if isinstance(use, str) and ":" in use else str(use)


Model = Annotated[
    Annotated[Linear, Tag("linear")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[UserCode, Tag("user")],
    Discriminator(_built_in_or_user),
]


# ---- train ---------------------------------------------------------------------------------

ObjectiveName = Literal["binary", "multiclass", "regression"]


class UserObjective(UserCode):
    """The user's own loss; ``like`` says how labels are read and which metrics are computed."""

    like: ObjectiveName


class Optimizer(Section):
    """What all optimizers share."""

    lr: PositiveFloat = 0.001
    weight_decay: NonNegativeFloat = 0.0


class Sgd(Optimizer):
    use: Literal["sgd"]
    momentum: Fraction = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0. Set momentum, such as 0.9")
        return self


class Adagrad(Optimizer):
    use: Literal["adagrad"]
    lr: PositiveFloat = 0.01
    eps: PositiveFloat = 1e-10


class RmsProp(Optimizer):
    use: Literal["rmsprop"]
    alpha: Fraction = 0.99
    momentum: Fraction = 0.0
    eps: PositiveFloat = 1e-8


class Adam(Optimizer):
    use: Literal["adam", "adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


AnyOptimizer = Annotated[Sgd | Adagrad | RmsProp | Adam, Field(discriminator="use")]


class Schedule(Section):
    """The learning rate over the steps, as a factor of ``optimizer.lr``."""

    use: Literal["constant", "step", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0  # linear, from lr/(warmup_steps+1) up to lr
    every_epochs: PositiveInt = 1  # step: how often lr is multiplied by `factor`
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    end: Annotated[float, Field(ge=0, le=1)] = 0.0  # cosine: the factor at the last step


class Penalty(Section):
    """Added to the mean loss: l1 * sum|w| + l2 * sum w^2 over weights (biases are left alone)."""

    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 0.0


class EarlyStopping(Section):
    """Stop when the validation metric has not improved for ``patience`` epochs; keep the best."""

    metric: str = "loss"
    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.0


class Train(Section):
    """One training."""

    objective: ObjectiveName | UserObjective
    epochs: PositiveInt = 10
    batch_rows: PositiveInt = 1024  # the global batch: rows in one step over all ranks
    # elastic: the same bits for any world. world: torch's DistributedDataParallel, the same bits
    # for the same world. off: besides, the fastest kernels; no two runs need be alike.
    determinism: Literal["elastic", "world", "off"] = "elastic"
    virtual_ranks: Literal["auto"] | PositiveInt = "auto"  # elastic: slices of a global batch
    micro_batch_rows: PositiveInt | None = None  # rows in memory at once; gradients add up
    precision: Literal["float32", "bf16"] = "float32"  # bf16: forward and backward autocast to it
    optimizer: AnyOptimizer = Adam(use="adam")
    schedule: Schedule = Schedule()
    penalty: Penalty = Penalty()
    clip_norm: PositiveFloat | None = None
    early_stopping: EarlyStopping | None = None
    seed: Seed = 7
    checkpoint_every_s: PositiveFloat = 30.0
    digest_every: PositiveInt = 1000  # steps between two entries of the digest trail

    @field_validator("objective", mode="before")
    @classmethod
    def _user_code_needs_like(cls, value: Any) -> Any:
        if isinstance(value, str) and ":" in value:
            raise ValueError(
                f'a loss of your own says how labels are read: {{use: "{value}", like: binary}}'
            )
        return value

    @field_validator("determinism", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML takes a bare ``off`` for false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _slices_are_one_story(self) -> "Train":
        if self.virtual_ranks == "auto":
            return self
        if self.determinism != "elastic":
            raise ValueError(
                f"virtual_ranks {self.virtual_ranks} is for determinism: elastic; with "
                f"{self.determinism} a rank has one slice. Remove one of them"
            )
        slice_rows = -(-self.batch_rows // self.virtual_ranks)
        if self.micro_batch_rows is not None and slice_rows > self.micro_batch_rows:
            least = -(-self.batch_rows // self.micro_batch_rows)
            raise ValueError(
                f"{self.virtual_ranks} virtual_ranks cut a batch into slices of {slice_rows} rows, "
                f"more than micro_batch_rows {self.micro_batch_rows}. Set virtual_ranks to {least} "
                "or more, or remove one of them"
            )
        return self


# ---- the rest ------------------------------------------------------------------------------


class Report(Section):
    """What the report draws beyond the objective's own plots."""

    histogram: str | None = None  # a numeric feature, drawn for each class


class Infer(Section):
    """The last stage of a run: the trained model over a source."""

    source: str | None = None  # none: data.test_source, or else data.source
    keys: list[str] = []  # columns of the source that are copied beside each prediction


class Pipeline(Section):
    """A pipeline file."""

    name: Annotated[str, Field(pattern=NAME)]
    data: Data
    model: Model
    train: Train
    report: Report = Report()
    infer: Infer = Infer()
    register_as: Annotated[str, Field(pattern=REGISTERED)] | None = Field(None, alias="register")

    @property
    def labels(self) -> ObjectiveName:
        """How labels are read: the objective's kind."""
        objective = self.train.objective
        return objective.like if isinstance(objective, UserObjective) else objective
