"""Builds one rank's part of a training from its job, and runs the loop over it."""

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import CheckpointError, TrainingError
from ddlflow.train import precision
from ddlflow.train.affine_backward import affine_backward
from ddlflow.train.bad_batch import name_rows
from ddlflow.train.components import fit_components
from ddlflow.train.events import CheckpointSaved, Noted, Resumed, Tell
from ddlflow.train.first_net import first_net, task_of
from ddlflow.train.full_batch import FullBatch, FullBatchOptimizer, descend, optimizer_of
from ddlflow.train.job import Job
from ddlflow.train.loop import Stopped, Surroundings, train
from ddlflow.train.parallel.agreement import Ranks, compare, resumed
from ddlflow.train.parallel.ddp import DdpReplica
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.replica import Replica
from ddlflow.train.parallel.tree import Gather
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.penalty import penalty_on
from ddlflow.train.precision import LossOf
from ddlflow.train.pulse import Pulse
from ddlflow.train.result import TrainingResult
from ddlflow.train.saved import fence
from ddlflow.train.saved.checkpoint import Plain, Say
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.export import rows_mark, save_model
from ddlflow.train.saved.ledger import Ledger, publish
from ddlflow.train.saved.space import wait_for_space
from ddlflow.train.saved.state import Saved, Snapshot, State
from ddlflow.train.saved.writer import Writer
from ddlflow.train.split_rows import split_rows, standardisation_of
from ddlflow.train.tasks.target import label_target
from ddlflow.train.tasks.task import Task
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
    tell: Tell,
    must_stop: Callable[[], bool],
    pulse: Pulse | None = None,
    gather: Gather | None = None,
) -> TrainingResult | None:
    """Trains, from the last checkpoint if there is one, and writes the model (rank 0).

    Args:
        job: what to train.
        rank: this one.
        world: how many there are.
        group: of all ranks; None where the world is 1.
        device: to train on.
        tell: takes what happens.
        must_stop: asked between steps.
        pulse: tells that this rank lives.
        gather: a faster way than the group's for small gradients.

    Returns:
        What came of it; None on ranks but 0.

    Raises:
        TrainingError, Stopped: as the loop.
    """
    folder, spec = job.dataset, job.train
    pulse = pulse or Pulse(lambda event: None, 0.0)
    say = partial(_note, tell)
    patiently = partial(wait_for_space, what=f"storage {job.folder}", pulse=pulse, say=say)
    manifest = Manifest.load(folder)
    task = task_of(job, label_target(spec, manifest))
    label = task.label.scale
    standardisation = standardisation_of(manifest)
    rows = split_rows(folder, manifest, "train", standardisation, pulse, label=label)
    net = first_net(job, manifest, task)
    held = fit_components(net, rows)
    net = net.to(device)
    (part,) = task.parts
    optimizer = optimizer_of(spec.optimizer, part.of(net), device=device)
    state = State(net, optimizer)
    ranks = Ranks(rank, world, group, device)
    attempt = patiently(lambda: _begin(job)) if rank == 0 else 0
    found = resumed(job.checkpoints, ranks, say, at_least=job.saved_step)
    if found is not None:
        state.restore(_saved_state(found, job))
        tell(Resumed(state.steps, state.history))
    elif held is not None and rank == 0:
        say(f"The components of pca hold {held:.1%} of the features' variance.")

    layout = layout_of(job, rank, world)
    spec = spec.model_copy(update={"penalty": penalty_on(label, spec.penalty)})
    validation = Validation(
        rows=split_rows(folder, manifest, "validation", standardisation, pulse),
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
    writer = _writer(job, attempt, say, tell) if rank == 0 else None
    batches = Batches(
        rows,
        batch_rows=spec.batch_rows,
        virtual_ranks=job.virtual_ranks,
        mine=layout.mine,
        seed=spec.seed,
        device=device,
    )
    around = Surroundings(
        batches=batches,
        replica=_replica(
            job, net, task, loss_of=loss_of, layout=layout, group=group, gather=gather
        ),
        task=task,
        validate=validation,
        tell=tell,
        must_stop=must_stop,
        pulse=pulse,
        name_rows=partial(name_rows, folder, batches.order),
        ledger=Ledger(job.ledgers, job.attempt, rank, world, patiently),
        writer=writer,
        compare=is_alike,
        settings=job.settings,
        rows=rows.rows,
        sharing=layout.sharing,
        num_slices=len(layout.mine),
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
    mark = rows_mark(rows, rank, world, ranks.gathered)
    if rank > 0:
        return None
    fence.check(job.checkpoints, attempt)
    return patiently(lambda: save_model(job, manifest, mark, state, label))


def _begin(job: Job) -> int:
    """The number of this attempt, before which what earlier ones left on this host is put away."""
    publish(job.ledgers)
    return fence.claim(job.checkpoints)


def _writer(job: Job, attempt: int, say: Say, tell: Tell) -> Writer:
    """Rank 0's, which tells of each checkpoint that is on the disk."""

    def on_saved(step: int) -> None:
        tell(CheckpointSaved(step))

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


def _note(tell: Tell, text: str) -> None:
    """Tells the user, and the log."""
    log.warning(text)
    tell(Noted(text))


def layout_of(job: Job, rank: int, world: int) -> RankLayout:
    """A rank's place among the ranks of an attempt."""
    is_elastic = job.train.determinism == "elastic"
    return RankLayout(rank, world, job.virtual_ranks, is_elastic=is_elastic)


def _replica(
    job: Job,
    net: nn.Module,
    task: Task,
    *,
    loss_of: LossOf,
    layout: RankLayout,
    group: Group,
    gather: Gather | None,
) -> Replica:
    """What computes and adds up the gradients, by what ``train.determinism`` promises."""
    spec = job.train
    if spec.determinism == "elastic":
        backward = affine_backward(net, task, spec.precision, job.device)
        return WholeReplica(
            net, loss_of, layout, group, gather=gather, seed=spec.seed, backward=backward
        )
    return DdpReplica(
        net,
        loss_of,
        layout,
        group,
        seed=spec.seed,
        micro_batch_rows=spec.micro_batch_rows,
        seeds_steps=spec.determinism == "world",
    )


def _saved_state(found: Plain, job: Job) -> Snapshot:
    """Where a checkpoint's training stood; it has to be the job's."""
    saved = Saved.from_plain(found, job.checkpoints.location)
    changed = job.settings.changed(saved.settings)
    if changed:
        raise TrainingError(
            f"The checkpoint in {job.checkpoints.location} was made with other settings of "
            f"{', '.join(changed)}; going on from it would give a model that no single setting "
            "gives. Use the same, or start anew with --fresh."
        )
    return saved.state
