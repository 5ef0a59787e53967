"""Builds one rank's part of a training from its job, and runs the loop over it."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.manifest import Manifest, Shard, SplitName
from ddlflow.data.shards.order import num_sharing, virtual_ranks_of
from ddlflow.data.shards.rows import Rows, ShardFiles, Standardisation
from ddlflow.data.shards.statistics import Statistics
from ddlflow.data.shards.verified import verified
from ddlflow.errors import CheckpointError, TrainingError
from ddlflow.models import build
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.models.standardise import Standardise
from ddlflow.spec.code import resolve
from ddlflow.spec.pipeline import UserCode
from ddlflow.train import precision
from ddlflow.train.bad_batch import name_rows
from ddlflow.train.components import fit_components
from ddlflow.train.full_batch import FullBatch, FullBatchOptimizer, descend, optimizer_of
from ddlflow.train.job import Job
from ddlflow.train.loop import Stopped, Surroundings, train
from ddlflow.train.parallel.agreement import Ranks, compare, resumed
from ddlflow.train.parallel.gradients import Gradients, seed_random
from ddlflow.train.parallel.reduction import Reduction
from ddlflow.train.parallel.replicas import Replicas
from ddlflow.train.penalty import penalty_on
from ddlflow.train.precision import LossOf
from ddlflow.train.pulse import Pulse
from ddlflow.train.saved import fence
from ddlflow.train.saved.checkpoint import Say
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.export import save_model
from ddlflow.train.saved.ledger import Ledger, publish
from ddlflow.train.saved.space import wait_for_space
from ddlflow.train.saved.state import State
from ddlflow.train.saved.writer import Writer
from ddlflow.train.tasks.table import LabelTask, resolved_task
from ddlflow.train.tasks.target import LabelTarget, label_target
from ddlflow.train.validation import Validation

Group = dist.ProcessGroup | None
log = logging.getLogger(__name__)


def run(
    job: Job,
    rank: int,
    world: int,
    group: Group,
    device: torch.device,
    *,
    emit: Callable[[dict[str, Any]], None],
    must_stop: Callable[[], bool],
    pulse: Pulse | None = None,
) -> dict[str, Any]:
    """Trains, from the last checkpoint if there is one, and writes the model (rank 0).

    Returns:
        The result that ``save_model`` describes; on ranks but 0 the digest alone.

    Raises:
        TrainingError, Stopped: as the loop.
    """
    folder, spec = Path(job.dataset), job.train_spec
    pulse = pulse or Pulse(lambda event: None, 0.0)
    say = partial(_note, emit)
    patiently = partial(wait_for_space, what=f"storage {job.folder}", pulse=pulse, say=say)
    manifest = Manifest.load(folder)
    task = task_of(job, label_target(spec, manifest))
    label = task.label.scale
    standardisation = standardisation_of(manifest)
    rows = _rows(folder, manifest, "train", standardisation, pulse, label=label)
    net = first_net(job, manifest, task)
    held = fit_components(net, rows)
    net = net.to(device)
    optimizer = optimizer_of(spec.optimizer, net, device=device)
    state = State(net, optimizer)
    ranks = Ranks(rank, world, group, device)
    attempt = patiently(lambda: _begin(job)) if rank == 0 else 0
    saved = resumed(job.checkpoints, ranks, say, at_least=job.saved_step)
    if saved is not None:
        _same_training(saved, job)
        state.restore(saved["state"])
        emit({"event": "resumed", "step": state.steps, "history": state.history})
    elif held is not None and rank == 0:
        say(f"The components of pca hold {held:.1%} of the features' variance.")

    mine = virtual_ranks_of(rank, world, job.virtual_ranks)
    spec = spec.model_copy(update={"penalty": penalty_on(label, spec.penalty)})
    validation = Validation(
        rows=_rows(folder, manifest, "validation", standardisation, pulse),
        net=net,
        task=task,
        rank=rank,
        world=world,
        group=group,
        device=device,
    )
    loss_of = precision.loss_of(net, task, spec.precision, job.device, inputs=rows.inputs)
    promised = spec.determinism != "off"  # which alone does not promise equal last bits
    is_alike = partial(compare, ranks=ranks, with_digests=promised)
    is_alike(state, digest(state.net) if world > 1 and promised else "")
    writer = _writer(job, attempt, say, emit) if rank == 0 else None
    batches = Batches(
        rows,
        batch_rows=spec.batch_rows,
        virtual_ranks=job.virtual_ranks,
        mine=mine,
        seed=spec.seed,
        device=device,
    )
    around = Surroundings(
        batches=batches,
        gradients=_gradients(job, net, loss_of, rank=rank, world=world, group=group),
        task=task,
        validate=validation,
        emit=emit,
        must_stop=must_stop,
        pulse=pulse,
        name_rows=partial(name_rows, folder, batches.order),
        ledger=Ledger(job.ledgers, job.attempt, rank, world, patiently),
        writer=writer,
        compare=is_alike,
        settings=settings(job),
        rows=rows.rows,
        parts=partial(_parts, job, world),
        mine=len(mine),
    )
    try:
        if isinstance(optimizer, FullBatchOptimizer):
            exact = optimizer.exact
            loss_of = precision.loss_of(exact, task, "float32", job.device, inputs=rows.inputs)
            batch = FullBatch(
                rows, exact, loss_of, spec.penalty, rank=rank, world=world, group=group
            )
            descend(state, spec, around, batch)
        else:
            train(state, spec, around)
    except BaseException as error:
        _close(job, writer, pulse, say, must_be_saved=isinstance(error, Stopped))
        raise
    _close(job, writer, pulse, say, must_be_saved=False)  # the model is written now
    if rank > 0:
        return {}
    fence.check(job.checkpoints, attempt)
    return patiently(lambda: save_model(job, manifest, rows, state, label))


def _begin(job: Job) -> int:
    """The number of this attempt, before which what earlier ones left on this host is put away."""
    publish(job.ledgers)
    return fence.claim(job.checkpoints)


def _writer(job: Job, attempt: int, say: Say, emit: Callable[[dict[str, Any]], None]) -> Writer:
    """Rank 0's, which tells of each checkpoint that is on the disk."""

    def on_saved(step: int) -> None:
        emit({"event": "saved", "step": step})

    return Writer(job.checkpoints, say, attempt=attempt, on_saved=on_saved)


def _close(job: Job, writer: Writer | None, pulse: Pulse, say: Say, *, must_be_saved: bool) -> None:
    """Waits until the last checkpoint is on the disk, and the ledger is where it belongs.

    Raises:
        CheckpointError: it cannot be put there, and ``must_be_saved``.
    """
    pulse.resting = True
    try:
        publish(job.ledgers)
    except OSError as error:
        say(f"The ledger of the training is not saved: {error.filename}: {error.strerror}.")
    if writer is None:
        return
    try:
        writer.close()
    except CheckpointError as error:
        say(f"The last state of the training is not saved: {error}")
        if must_be_saved:
            raise


def _note(emit: Callable[[dict[str, Any]], None], text: str) -> None:
    """Tells the user, and the log."""
    log.warning(text)
    emit({"event": "note", "text": text})


def _gradients(
    job: Job, net: nn.Module, loss_of: LossOf, *, rank: int, world: int, group: Group
) -> Gradients | Replicas:
    """What computes and adds up the ranks' gradients, by the pipeline's ``determinism``."""
    spec = job.train_spec
    if spec.determinism == "elastic":
        mine = virtual_ranks_of(rank, world, job.virtual_ranks)
        reduction = Reduction(rank, world, job.virtual_ranks, group)
        return Gradients(net, loss_of, reduction, mine=mine, seed=spec.seed)
    return Replicas(
        net,
        loss_of,
        rank=rank,
        world=world,
        group=group,
        seed=spec.seed,
        micro_batch_rows=spec.micro_batch_rows,
        seeds_steps=spec.determinism == "world",
    )


def _parts(job: Job, world: int, batch_rows: int) -> int:
    """How many of those whose gradients are added up have rows of a global batch."""
    apart = job.virtual_ranks if job.train_spec.determinism == "elastic" else world
    return num_sharing(batch_rows, job.virtual_ranks, apart)


def settings(job: Job) -> dict[str, Any]:
    """What decides the bits of a training; a checkpoint of other settings is not gone on from."""
    return {
        "model": job.model,
        "train": {key: v for key, v in job.train.items() if key != "checkpoint_every_s"},
        "virtual_ranks": job.virtual_ranks,
        "threads": job.threads,
        "device": job.device,
    }


def _same_training(saved: dict[str, Any], job: Job) -> None:
    changed = [
        name for name, value in settings(job).items() if saved["settings"].get(name) != value
    ]
    if changed:
        raise TrainingError(
            f"The checkpoint in {job.checkpoints.location} was made with other settings of "
            f"{', '.join(changed)}; going on from it would give a model that no single setting "
            "gives. Use the same, or start anew with --fresh."
        )


def task_of(job: Job, label: LabelTarget) -> LabelTask:
    """The job's task, with user code resolved."""
    code = Path(job.code) if job.code else None
    return resolved_task(job.train_spec.objective, code, label)


def first_net(job: Job, manifest: Manifest, task: LabelTask) -> nn.Module:
    """The untrained model: its weights are a function of the seed."""
    spec = job.model_spec
    code = Path(job.code) if job.code else None
    seed_random(torch.device("cpu"), job.train_spec.seed, 0, -1)
    return build(
        spec,
        num_features=len(manifest.feature_names),
        category_sizes=[category.size for category in manifest.categories],
        num_outputs=task.num_outputs or 1,
        user_class=resolve(spec.use, code) if isinstance(spec, UserCode) else None,
        from_zero=job.train_spec.standardises_label,
        names=manifest.columns.features,
        tensors=manifest.tensors,
    )


def num_parameters(job: Job) -> int:
    """How many numbers the job trains."""
    job = job.here()
    manifest = Manifest.load(job.dataset)
    counted = LabelTarget(num_classes=len(manifest.label.classes) or None)
    net = first_net(job, manifest, task_of(job, counted))
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def standardisation_of(manifest: Manifest) -> Standardisation:
    """That of the training rows, in the very numbers that the model's buffers have."""
    return standardisation_by(manifest, manifest.statistics("train"))


def standardisation_by(manifest: Manifest, statistics: Statistics) -> Standardisation:
    """That of a data set's rows by the statistics of those that are trained on."""
    buffers = Standardise(statistics.mean, statistics.variance)
    groups = manifest.groups
    has_missing = any((g.statistics.count < g.statistics.rows).any() for g in groups)
    return Standardisation(buffers.mean.numpy(), buffers.scale.numpy(), has_missing)


def _rows(
    folder: Path,
    manifest: Manifest,
    split: SplitName,
    standardisation: Standardisation,
    pulse: Pulse,
    *,
    label: LabelScale = AS_IT_IS,
) -> Rows:
    """A split's rows. A shard may have to be read before it is used, to see that it is whole."""

    def locate(shards: Sequence[Shard]) -> list[Path]:
        with pulse.fetching():
            return verified(folder, shards)

    files = ShardFiles(tuple(manifest.shards_of(split)), locate)
    return Rows(files, standardisation, label.of_array)
