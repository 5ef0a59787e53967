"""Settings of Prefect that are ddlflow's, where the user has not set them."""

import os

from ddlflow.redact import keep_out_of_logs


def settle_prefect() -> None:
    """Settings that Prefect reads when it is imported; what the user has set stays."""
    calm = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Its console lines would stand between ours; its pages and files keep theirs.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING" if _debug() else "CRITICAL",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    }
    for name, value in calm.items():
        os.environ.setdefault(name, value)
    keep_out_of_logs()  # Prefect sends them to its server


def _debug() -> bool:
    return bool(os.environ.get("DDLFLOW_DEBUG"))
