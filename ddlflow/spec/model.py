"""The pipeline's model section: a built-in family by name, or code of the user's."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from ddlflow.spec.section import Fraction, Section, UserCode


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LinearSection(Section):
    """A linear or logistic regression: one affine map."""

    use: Literal["linear"]
    embedding: PositiveInt | None = None  # width of a category's vector; none: one-hot
    # Those of the data's features that the model uses; none: all. A search by method forward
    # finds them.
    features: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] | None = None
    pca: PositiveInt | None = None  # so many principal components instead of numeric features

    @model_validator(mode="after")
    def _one_choice(self) -> "LinearSection":
        if self.features is not None and self.pca is not None:
            raise ValueError(
                "features chooses columns and pca makes components of all of them. Remove one of "
                "the two"
            )
        return self


class MlpSection(Section):
    """A multilayer perceptron."""

    use: Literal["mlp"]
    hidden: Annotated[list[PositiveInt], Field(min_length=1)] = [100]
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"
    dropout: Fraction = 0.0
    batch_norm: bool = False
    start: Literal["xavier", "he"] = "he"
    embedding: PositiveInt | None = None  # width of a category's vector; none: by its vocabulary
    pca: PositiveInt | None = None  # so many principal components instead of numeric features


def _built_in_or_user(value: Any) -> str:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    return "user" if isinstance(use, str) and ":" in use else str(use)


Model = Annotated[
    Annotated[LinearSection, Tag("linear")]
    | Annotated[MlpSection, Tag("mlp")]
    | Annotated[UserCode, Tag("user")],
    Discriminator(_built_in_or_user),
]
