"""What all sections of a file share, and the kinds of values that several have."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
