"""The record of a run in MLflow.

One file a step:

- ``uris``     tracking URIs: checked, made absolute, printed without their secrets
- ``spool``    the log file of one run that outlives outages and crashes
- ``connect``  a client of the store; the database and the experiment, made where missing
- ``send``     that log file, record by record, into MLflow
- ``run``      ``open_run``: what the stages log to
- ``delivery`` the thread that sends while a run goes on
- ``pending``  what earlier runs left behind, sent when the next command starts
- ``system``   processor, memory, disk, network and GPU use of this machine, as metrics
- ``log_model`` a trained model into the spool; ``send_model`` makes it MLflow's, ``served`` is the
  code that MLflow keeps with it
- ``fetch``    a model URI back into a folder; ``registry`` asks MLflow where it is
- ``servers``  the MLflow and Prefect pages of ``ddlflow ui``

Importing this package imports no MLflow: ``open_run`` does, and the modules ``log_model`` and
``registry``.
"""

from ddlflow.redact import redacted
from ddlflow.tracking.pending import send_pending
from ddlflow.tracking.run import Run, open_run
from ddlflow.tracking.uris import page

__all__ = ["Run", "open_run", "page", "redacted", "send_pending"]
