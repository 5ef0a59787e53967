"""The pipeline's data section: where the rows are, and which columns mean what."""

import codecs
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from ddlflow.spec.section import Fraction, Section, Seed
from ddlflow.spec.tables import AnyTable, PlaceOrTable, source_kind

MadeName = Literal["collider", "particles"]


def _encoding(name: str) -> str:
    """Refuses what is no character encoding that Python knows."""
    try:
        b"".decode(name)
        codecs.lookup(name)
    except LookupError:
        raise ValueError(
            f"{name!r} is no character encoding; expected one such as utf-8, latin-1, cp1252, "
            "utf-16 or shift_jis"
        ) from None
    return name


class Made(Section):
    """A source that is made (``ddlflow.data.samples.generators``) and kept under the storage."""

    use: MadeName
    rows: PositiveInt
    seed: Seed = 1


AnySource = Annotated[
    Annotated[str, Tag("a place")] | Annotated[Made, Tag("made")] | AnyTable,
    Discriminator(source_kind),
]


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

    # A file, glob, folder or fsspec URL, relative to the site's data_root; or a table of Spark's or
    # Dask's: {spark: "SELECT ...", key: [id]} (spec/tables.py).
    source: AnySource
    test_source: PlaceOrTable | None = None  # a table of its own that is the test split
    format: Literal["auto", "parquet", "csv", "arrow", "jsonl"] = "auto"
    header: bool = True  # CSV: does the first line name the columns? else c0, c1, ...
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","  # of CSV; "\t" for tabs
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"  # CSV, JSON: latin-1, cp1252, ...
    decimal: Literal[".", ","] = "."  # CSV: the sign before the decimals
    thousands: Annotated[str, Field(pattern=r"^[^\w\"+-]$")] | None = None  # CSV: "," in 1,234,567
    missing_values: Literal["pandas"] | list[str] = "pandas"  # CSV: pandas' own are "", NA, N/A,
    #   NULL, None, nan, ...; [""] keeps these as texts, [pandas, "-999"] has one more
    text: list[str] = []  # columns to read as text, not as numbers or dates: leading zeros stay
    label: str
    features: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    exclude: list[
        str
    ] = []  # columns that "all" leaves out (keys, the split column is left out too)
    weight: str | None = None  # a column of what each row counts, in the loss and in the metrics
    categorical: list[str] = []  # columns of whole numbers to read as categories; text always is
    rare_below: PositiveInt = 10  # categories seen in fewer rows share the bucket of unseen ones
    derive: dict[str, str] = {}  # columns that SQL expressions compute: {late: "arr_delay > 15"}
    # Powers of each numeric feature as features, up to this one: a^2. Not of truth values.
    polynomial: Annotated[int, Field(ge=1, le=9)] = 1
    interactions: bool = False  # products of any two numeric features as features: a*b
    where: str | None = None  # rows to learn from, as an SQL condition; predictions are for all
    # Features that are dates or times: year, month, ... each (time.hour), seconds since 1970, none.
    dates: Literal["parts", "number", "refuse"] = "parts"
    label_missing: Literal["refuse", "drop"] = "refuse"  # rows without a (finite) label
    missing: Literal["impute", "refuse", "drop"] = "impute"  # null and NaN in a feature
    infinite: Literal["impute", "refuse", "drop"] = "impute"  # impute: as if it were missing
    split: Split = Split()
    seed: Seed = 7

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, value: object) -> object:
        """A tab, where it is written without the double quotes that YAML needs for it."""
        return "\t" if value == "\\t" else value

    @model_validator(mode="after")
    def _one_sign_each(self) -> "Data":
        if self.thousands == self.decimal:
            raise ValueError(
                f"decimal and thousands are both {self.decimal!r}. Correct one of them: 1.234,5 is "
                'decimal: "," with thousands: "."'
            )
        return self

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
