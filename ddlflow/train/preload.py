"""All that a rank imports before its first step, for a process that ranks are forked from.

Imported once, and shared by every rank that is forked then. It computes nothing, starts no thread
and touches no GPU; what is the user's is imported by the rank itself.
"""

import pandas  # noqa: F401 - Arrow looks for it when it hands out a column
import psutil  # noqa: F401
import torch._dynamo
import torch._inductor.config  # torch.use_deterministic_algorithms sets a value there
import torch.distributed  # noqa: F401

import ddlflow.train.facts
import ddlflow.train.parallel.gate
import ddlflow.train.training  # noqa: F401
