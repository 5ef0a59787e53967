"""What is settled before a training begins: numbers for ``auto``, its ranks, the code it takes."""

from dataclasses import dataclass

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import DdlflowError
from ddlflow.runs.failures import plural
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import PrepareResult
from ddlflow.runs.session import Session
from ddlflow.spec import code
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Training
from ddlflow.store import documents
from ddlflow.store.store import Store
from ddlflow.train.auto import resolve, said
from ddlflow.train.parallel.world import fitting_world
from ddlflow.train.tasks.weights import weighting

KEPT = "setup.json"  # in a training's folder, from its first start on


@dataclass(frozen=True, slots=True)
class Setup:
    """How a training is spread.

    Attributes:
        world: ranks of the first attempt.
        most: ranks that a later attempt may have, where workers were added meanwhile.
        virtual_ranks: slices of a global batch, kept from the training's first start on.
        threads: of a rank, kept likewise.
    """

    world: int
    most: int
    virtual_ranks: int
    threads: int


def settled(session: Session, prepared: Stage[PrepareResult]) -> Training:
    """The train section with numbers for ``auto``: from here on the session's own, and said.

    Raises:
        SpecError: ``class_weights`` names what is no class of these rows.
    """
    pipeline, rows = session.request.pipeline, prepared.value.rows
    found = resolve(pipeline.train, rows["train"], rows["validation"])
    if found.class_weights is not None:
        weighting(found, Manifest.load(prepared.folder))
    line = said(pipeline.train, found)
    if line is not None:
        session.screen.say(line)
        session.use(pipeline.model_copy(update={"train": found}))
    return found


def setup(session: Session, spec: Training, folder: Store, rows: int, num_parameters: int) -> Setup:
    """Decides how a training is spread.

    Args:
        session: whose site says what is wanted.
        spec: what the pipeline says.
        folder: of the training: virtual ranks and threads are kept there from its first start.
        rows: to train on.
        num_parameters: of the model.
    """
    found = session.resources
    batch_rows = min(spec.batch_rows, rows)
    world, why, most = found.world, found.why, found.world
    if world is None:
        size = {"num_parameters": num_parameters, "batch_rows": batch_rows}
        choice = fitting_world(cores=session.engine.slots, **size)
        world, why = choice.world, choice.why
        most = fitting_world(cores=batch_rows, **size).world
    if not folder.exists(KEPT):
        virtual_ranks = spec.virtual_ranks
        if virtual_ranks == "auto":
            # In elastic mode a slice is what is in memory at once: more slices, smaller pieces.
            micro = spec.micro_batch_rows if spec.determinism == "elastic" else None
            virtual_ranks = max(world, -(-batch_rows // micro) if micro else 1)
        chosen = {"virtual_ranks": min(virtual_ranks, batch_rows), "threads": found.threads}
        documents.save(folder, KEPT, chosen, indent=1)
    known = documents.load(folder, KEPT)
    if known is None:
        raise DdlflowError(f"{folder.location}/{KEPT} is damaged. Train again with --fresh.")
    virtual_ranks, threads = known["virtual_ranks"], known["threads"]
    world = min(world, virtual_ranks, session.engine.slots)
    words = [plural(world, "rank"), plural(threads, "thread")]
    if spec.determinism == "elastic":
        words.append(plural(virtual_ranks, "virtual rank"))
    else:
        words.append(f"determinism: {spec.determinism}")
    session.screen.say(f"train: {words[0]} x {words[1]}, {words[2]} ({why})")
    return Setup(world, min(most or world, virtual_ranks), virtual_ranks, threads)


def ship(request: Request, folder: Store) -> str | None:
    """Puts the code that a model takes along into a stage's folder; where it is, or None."""
    found = code.files(request, of_sources=False)
    for name, path in found.items():
        folder.write(f"code/{name}", path.read_bytes())
    return folder.at("code").location if found else None
