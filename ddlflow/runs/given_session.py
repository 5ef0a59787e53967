"""`ddlflow.run(..., spark=session)`: what the site says then."""

from typing import Any

from ddlflow.engines.given import using as using  # noqa: PLC0414 - of this page's callers
from ddlflow.errors import SpecError


def changes_for(session: Any) -> list[str]:
    """Settings on top of the site's that make a Spark session its engine.

    Raises:
        SpecError: it is none, or was stopped.
    """
    if not type(session).__module__.startswith("pyspark."):
        raise SpecError(
            f"spark is a {type(session).__name__}; expected a SparkSession. Give the one of your "
            "notebook or job, or leave it out."
        )
    from ddlflow.engines.spark_session import address_of

    address = address_of(session)
    return ["engine.use=spark", f"engine.address={address or 'null'}"]
