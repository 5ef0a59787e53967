"""The pipeline's train section: one training."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ddlflow.spec.section import Fraction, Section, Seed, UserCode

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


class Lbfgs(Section):
    """For model linear: all rows in every step, in float64, to the optimum itself.

    An epoch is one step. It takes no lr, batches or schedule, and no penalty but l2.
    """

    use: Literal["lbfgs"]
    tolerance: PositiveFloat = 1e-9  # it ends where the mean loss changes less along any weight
    history: PositiveInt = 50  # steps that are remembered, two vectors of the weights' size each


AnyOptimizer = Annotated[Sgd | Adagrad | RmsProp | Adam | Lbfgs, Field(discriminator="use")]


class Schedule(Section):
    """The learning rate over the steps, as a factor of ``optimizer.lr``."""

    use: Literal["constant", "step", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0  # linear, from lr/(warmup_steps+1) up to lr
    every_epochs: PositiveInt = 1  # step: how often lr is multiplied by `factor`
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    end: Annotated[float, Field(ge=0, le=1)] = 0.0  # cosine: the factor at the last step


class Penalty(Section):
    """Added to the mean loss: l1 * sum|w| + l2 * sum w^2 over weights (biases are left alone).

    Where the label is standardised, the weights count in the label's units.
    """

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
    # regression: the net learns the label by its distance from the mean of the training rows, in
    # deviations; predictions, losses and metrics keep the label's units. auto: for the built-in
    # loss; one of your own gets the label as it is, or with true outputs and labels standardised.
    standardise_label: Literal["auto"] | bool = "auto"
    # auto: as many as the table needs. With validation rows it ends when they no longer improve
    # (early_stopping), and the best epoch is kept; without them after a number of steps.
    epochs: Literal["auto"] | PositiveInt = "auto"
    # The global batch: rows in one step over all ranks. auto: by the number of training rows.
    batch_rows: Literal["auto"] | PositiveInt = "auto"
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
    # What a row of each class counts in the loss, such as {fraud: 20}, the others 1; balanced: each
    # class as much as any other. Metrics stay as they are.
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
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

    @field_validator("class_weights", mode="before")
    @classmethod
    def _classes_are_names(cls, value: Any) -> Any:
        """YAML reads the class 1 as a number and the class true as a truth value."""
        if not isinstance(value, dict):
            return value
        return {str(k).lower() if isinstance(k, bool) else str(k): v for k, v in value.items()}

    @field_validator("determinism", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML takes a bare ``off`` for false."""
        return "off" if value is False else value

    @property
    def labels(self) -> ObjectiveName:
        """How labels are read: the objective's kind."""
        spec = self.objective
        return spec.like if isinstance(spec, UserObjective) else spec

    @property
    def standardises_label(self) -> bool:
        """Whether the net learns standardised labels."""
        if self.standardise_label == "auto":
            return self.objective == "regression"
        return self.standardise_label

    @model_validator(mode="after")
    def _all_rows_at_once(self) -> "Train":
        if not isinstance(self.optimizer, Lbfgs):
            return self
        wrong = {
            "objective of your own": not isinstance(self.objective, str),
            "penalty.l1 (use adam or sgd with it, or penalty.l2)": self.penalty.l1 > 0,
            "schedule": self.schedule != Schedule(),
            "clip_norm": self.clip_norm is not None,
            "early_stopping": self.early_stopping is not None,
            f"precision {self.precision}": self.precision != "float32",
            f"determinism {self.determinism}": self.determinism != "elastic",
        }
        found = [name for name, is_set in wrong.items() if is_set]
        if found:
            raise ValueError(
                f"optimizer lbfgs goes to the optimum with all rows in each step, and takes no "
                f"{found[0]}. Remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _classes_have_no_mean(self) -> "Train":
        if self.standardise_label is True and self.labels != "regression":
            raise ValueError(
                f"standardise_label is true, and objective {self.labels} reads the label as "
                "classes. Remove standardise_label, or set objective: regression"
            )
        return self

    @model_validator(mode="after")
    def _slices_are_one_story(self) -> "Train":
        if self.virtual_ranks == "auto":
            return self
        if self.determinism != "elastic":
            raise ValueError(
                f"virtual_ranks {self.virtual_ranks} is for determinism: elastic; with "
                f"{self.determinism} a rank has one slice. Remove one of them"
            )
        if self.batch_rows == "auto":
            return self
        slice_rows = -(-self.batch_rows // self.virtual_ranks)
        if self.micro_batch_rows is not None and slice_rows > self.micro_batch_rows:
            least = -(-self.batch_rows // self.micro_batch_rows)
            raise ValueError(
                f"{self.virtual_ranks} virtual_ranks cut a batch into slices of {slice_rows} rows, "
                f"more than micro_batch_rows {self.micro_batch_rows}. Set virtual_ranks to {least} "
                "or more, or remove one of them"
            )
        return self


class Training(Train):
    """A train section whose rows are known: numbers stand for auto (``ddlflow.train.auto``)."""

    epochs: PositiveInt
    batch_rows: PositiveInt
