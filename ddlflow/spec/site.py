"""The site: WHERE to do it. Never changes a result beyond the number of workers and threads."""

import re
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ddlflow.spec.pipeline import Section

_MASTER = re.compile(r"(spark|k8s|sc)://.|yarn$")


class Tls(Section):
    """Files in PEM format by which this side and a cluster's trust each other."""

    ca: Annotated[str, Field(min_length=1)]  # of who signed the cluster's certificates
    cert: Annotated[str, Field(min_length=1)]  # of this side
    key: Annotated[str, Field(min_length=1)]  # of that certificate


class EngineSection(Section):
    """The cluster framework and how much of it to take."""

    use: Literal["local", "dask", "spark"] = "dask"
    workers: Literal["auto"] | PositiveInt = "auto"
    threads: Literal["auto"] | PositiveInt = "auto"  # of one rank
    # dask: a scheduler that runs already, tcp://host:8786; spark: a master, spark://host:7077,
    # yarn or k8s://https://host:6443, or a Spark Connect server, sc://host:15002.
    address: str | None = None
    conf: dict[str, str | bool | int | float] = {}  # spark: settings of the application
    tls: Tls | None = None  # dask: for an address of tls://host:8786
    start_timeout_s: PositiveFloat = 60.0  # how long to wait for workers and for ranks to meet
    max_restarts: NonNegativeInt = 5  # of a training, in a row without a new checkpoint; 0: none
    min_workers: PositiveInt = 1  # fewer are not gone on with after a loss
    silence_s: NonNegativeFloat = 8.0  # a rank without a sign of life for so long hangs; 0: never

    @model_validator(mode="after")
    def _fits_together(self) -> "EngineSection":
        address = self.address or ""
        if self.address is not None and self.use == "local":
            raise ValueError(
                "address is for use: dask or spark, and use is local. Remove one of them"
            )
        if self.use == "spark" and self.address is not None and not _MASTER.match(address):
            raise ValueError(
                f"address is {address}; with use: spark expected spark://HOST:7077, yarn, "
                "k8s://https://HOST:6443 or sc://HOST:15002. For a session on this machine remove "
                "address"
            )
        if self.use == "dask" and _MASTER.match(address):
            raise ValueError(f"address is {address}, which is Spark's. Set use: spark")
        if self.conf and self.use != "spark":
            raise ValueError(f"conf is for use: spark, and use is {self.use}. Remove one of them")
        if self.tls is not None and not address.startswith("tls://"):
            raise ValueError(
                f"tls is for an address of tls://, and address is {self.address}. Set address to "
                "tls://HOST:PORT, or remove tls"
            )
        return self


class Tracking(Section):
    """The MLflow server or database."""

    uri: str = "sqlite:///.ddlflow/mlflow.db"
    # One experiment for all pipelines, so that MLflow's page can set their runs side by side.
    experiment: Annotated[str, Field(min_length=1)] = "ddlflow"


class Site(Section):
    """A site file."""

    engine: EngineSection = EngineSection()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_root: str = "data"
    # A folder that every worker sees, or a bucket: s3://BUCKET/PREFIX, gs://, abfs://.
    storage: Annotated[str, Field(min_length=1)] = ".ddlflow"
    tracking: Tracking = Tracking()
    trust_code: bool = False  # run code that models and recorded runs bring: whoever wrote it
