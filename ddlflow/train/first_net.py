"""The task and the untrained model of a job."""

from pathlib import Path

import torch
from torch import nn

from ddlflow.data.shards.manifest import Manifest
from ddlflow.models import build
from ddlflow.spec.code import resolve
from ddlflow.spec.pipeline import UserCode
from ddlflow.train.job import Job
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.table import LabelTask, resolved_task
from ddlflow.train.tasks.target import LabelTarget


def task_of(job: Job, label: LabelTarget) -> LabelTask:
    """The job's task, with user code resolved."""
    code = Path(job.code) if job.code else None
    return resolved_task(job.train.objective, code, label)


def first_net(job: Job, manifest: Manifest, task: LabelTask) -> nn.Module:
    """The untrained model: its weights are a function of the seed."""
    spec = job.model
    code = Path(job.code) if job.code else None
    seed_random(torch.device("cpu"), job.train.seed, 0, -1)
    return build(
        spec,
        num_features=len(manifest.feature_names),
        category_sizes=[category.size for category in manifest.categories],
        num_outputs=task.num_outputs or 1,
        user_class=resolve(spec.use, code) if isinstance(spec, UserCode) else None,
        from_zero=job.train.standardises_label,
        names=manifest.columns.features,
        tensors=manifest.tensors,
    )


def num_parameters(job: Job) -> int:
    """How many numbers the job trains."""
    job = Job.from_json(job.to_json()).here()  # as a rank gets it: of a date in YAML, the text
    manifest = Manifest.load(job.dataset)
    counted = LabelTarget(num_classes=len(manifest.label.classes) or None)
    net = first_net(job, manifest, task_of(job, counted))
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
