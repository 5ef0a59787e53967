"""What one command holds open: the request, the storage, the engine, the tracking run, the screen.

The engine opens at the first piece of work that needs it: a run whose stages are all cached starts
no cluster. A stage's folder is leased while it is worked on, so the same command given twice works
once, and the second waits and then finds the result.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ddlflow.engines import Engine, GangJob, GangResult, OnGangEvent, open_engine
from ddlflow.engines.batched import BatchDone, map_batched
from ddlflow.engines.importing import begin_import
from ddlflow.engines.resources import Resources, resources
from ddlflow.errors import InputError
from ddlflow.report.screen import Screen
from ddlflow.runs.finished import STAGE_FILE, Stage, Value, damaged, hashed, load, results_in, save
from ddlflow.runs.holds import Uses
from ddlflow.runs.interrupts import Interrupted, Interrupts
from ddlflow.runs.workers import close_engine, count_gpus, gpus_of, least_cores
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Pipeline
from ddlflow.store.lease import Lease, held
from ddlflow.store.site_storage import (
    remove_empty,
    storage_errors,
    storage_of,
    store_of_site,
)
from ddlflow.store.store import Store, is_url
from ddlflow.train.rank import PRELOAD

if TYPE_CHECKING:
    from ddlflow.train.facts import Facts  # which imports PyTorch


class Session:
    """Everything that the stages of one command share. A context manager."""

    def __init__(self, request: Request, screen: Screen, *, fresh: bool = False) -> None:
        self.request = request
        self.screen = screen
        self.fresh = fresh
        self.exported: dict[str, str] = {}  # the places of tables, by the hash of what was asked
        self._engine: Engine | None = None
        self._interrupts = Interrupts(screen.say)
        self._made_storage = False
        self._is_entered = False
        self._uses = Uses(self._interrupts.on_lost)  # what the stages made or found

    # ---- places ----------------------------------------------------------------------------

    @property
    def storage(self) -> Path:
        """The site's storage; of an object store, the folder of what is this machine's alone."""
        return storage_of(self.request.site)

    @cached_property
    def store(self) -> Store:
        """The site's storage, as every worker sees it."""
        return store_of_site(self.request.site)

    @property
    def bucket(self) -> Store | None:
        """The site's storage, if it is an object store."""
        return self.store if is_url(self.store.location) else None

    @property
    def data_root(self) -> Path:
        return Path(self.request.site.data_root).expanduser().absolute()

    def use(self, pipeline: Pipeline) -> None:
        """The stages from here on are of another pipeline: the one that a search chose."""
        self.request = replace(self.request, pipeline=pipeline)

    # ---- work ------------------------------------------------------------------------------

    @property
    def is_elsewhere(self) -> bool:
        """Whether the workers are on machines of their own, of which this one knows nothing."""
        return self.request.site.engine.address is not None

    @cached_property
    def workers(self) -> "list[Facts]":
        """What each worker says of itself; where all are on this machine, what this process is."""
        from ddlflow.train.facts import facts_here

        return self.engine.ask(facts_here) if self.is_elsewhere else [facts_here()]

    @cached_property
    def resources(self) -> Resources:
        """Workers, ranks and threads, ``auto`` resolved."""
        engine, gpus = self.request.site.engine, self.num_gpus
        if not self.is_elsewhere:
            return resources(engine, gpus=gpus)
        cores = least_cores(self.workers) if gpus else 1
        return resources(engine, gpus=gpus, cores=cores, workers=self.engine.slots)

    @cached_property
    def num_gpus(self) -> int:
        """GPUs to train on; 0: on the CPU."""
        device = self.request.site.device
        if self.is_elsewhere and device != "cpu":
            return gpus_of(device, self.workers)
        return count_gpus(device)

    @property
    def engine(self) -> Engine:
        """The engine, opened now if it was not yet."""
        if self._engine is None:
            sizes = {"slots": 1, "threads": 1}  # of an address: what is there counts
            if not self.is_elsewhere:
                sizes = {"slots": self.resources.slots, "threads": self.resources.threads}
            self._engine = open_engine(self.request.site, **sizes)
            self.screen.say(f"engine: {self._engine.describe()}")
        return self._engine

    def warm_ranks(self) -> None:
        """Has the workers import what a training's ranks need, while other work goes on."""
        self.engine.warm(self.resources.threads, PRELOAD)

    def import_ahead(self) -> None:
        """Has workers and this process import what scores and draws, while ranks train."""
        self.engine.import_ahead(("ddlflow.infer.evaluate",))
        begin_import(("ddlflow.report.plots",))

    def map_over(
        self, function: Callable[[Any], Any], items: Sequence[Any], name: str
    ) -> Iterable[Any]:
        """The engine's map with a progress bar; results in the items' order."""
        done = 0
        with self.screen.bar(name, len(items), "parts") as show:

            def on_event(event: BatchDone) -> None:
                nonlocal done
                done += event.items
                show(done)

            yield from map_batched(self.engine, function, items, on_event=on_event)

    def gang(self, job: GangJob, world: int, on_event: OnGangEvent) -> GangResult:
        """The engine's gang; a signal asks it to stop and leave a checkpoint.

        Raises:
            Interrupted: it was stopped by a signal.
            DdlflowError: another command has taken the work over.
        """
        engine = self.engine
        with self._interrupts.of_a_training():
            return engine.gang(job, world, on_event=on_event, stop=self._interrupts.stop)

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        work: Callable[[Store], Value],
        kind: type[Value],
        *,
        results: Sequence[str] = (),
        fresh: bool = False,
    ) -> Stage[Value]:
        """Does a stage's work in a folder of its own, unless it is done.

        What is done is looked at: a result that is not as it was written is removed and made again,
        as after a command that was killed.

        No other command's ``--fresh`` removes the folder until this session ends, so what this
        session has made or found once stands, without a look at the lease: another command may
        have that, and wait for this one.

        Args:
            name: of the stage.
            settings: all that the result depends on.
            work: does it, given the folder; returns the stage's value.
            kind: of that value.
            results: patterns of the files in the folder that others read.
            fresh: do it even if it is done, as the session's own ``fresh`` does for all stages.

        Raises:
            InputError: as ``work``; the folder is gone then.
            DdlflowError: as ``work``, or another command has taken the work over; what was finished
                in the folder is kept.
        """
        key = hashed({"stage": name, **settings})
        folder = self.store.at(f"{name}/{key}")
        if folder in self._uses:
            return self._found(folder, kind)
        of_work = storage_errors(self.store.location, of_work=True)
        with of_work, self.lease(folder, folder.location) as lease:
            if fresh or self.fresh:
                self._uses.wait_for_others(folder, self.screen.say)
                folder.remove_all()
            if folder.exists(STAGE_FILE):
                bad = damaged(folder)
                if not bad:
                    self._use(folder)
                    return self._found(folder, kind)
                names = ", ".join(key.rpartition("/")[2] for key in bad)
                self.screen.say(f"{name}: {folder.location} is damaged ({names}): it is done again")
                self._uses.wait_for_others(folder, self.screen.say)
                for file in {*bad, STAGE_FILE}:
                    folder.remove(file)
            is_new = folder.make()
            began = time.monotonic()
            try:
                value = work(folder)
            except InputError:
                if is_new:  # else it holds what an earlier run finished
                    lease.confirm()
                    with contextlib.suppress(OSError):
                        folder.remove_all()
                raise
            seconds = time.monotonic() - began
            stage = Stage(
                name, key, folder.location, seconds, False, value, results_in(folder, results)
            )
            lease.confirm()
            save(stage)
            self._use(folder)
        self.screen.done(name, seconds, cached=False)
        return stage

    def _found(self, folder: Store, kind: type[Value]) -> Stage[Value]:
        stage = load(folder, kind)
        self.screen.done(stage.name, stage.seconds, cached=True)
        return stage

    def keep(self, folder: Store) -> bool:
        """Keeps a finished stage's folder until the session ends; whether there is one."""
        if folder in self._uses:
            return True
        if not folder.exists(STAGE_FILE):
            return False
        with storage_errors(self.store.location), self.lease(folder, folder.location):
            is_there = folder.exists(STAGE_FILE)
            if is_there:
                self._use(folder)
        return is_there

    def keep_of(self, location: str) -> None:
        """Keeps the finished stage that a path or URL of the storage lies in, if it is one's."""
        inside = location.removeprefix(f"{self.store.location}/")
        if inside != location and len(parts := inside.split("/")) > 2:
            self.keep(self.store.at("/".join(parts[:2])))

    def _use(self, folder: Store) -> None:
        """From now on it is kept; called with its lease."""
        if self._is_entered:
            self._uses.add(folder)

    @contextlib.contextmanager
    def lease(self, place: Store, what: str) -> Iterator[Lease]:
        """Holds a place for this command alone; says who has it where another command does.

        Args:
            place: a file or folder of the storage, there or not.
            what: is worked on, for people.

        Raises:
            DdlflowError: another command has taken it over; the work was ended at once.
        """
        try:
            with contextlib.ExitStack() as stack:
                with storage_errors(self.store.location):
                    if not self.storage.exists():
                        self.storage.mkdir(parents=True)
                        self._made_storage = True
                    claims = place.claims("lease")
                    lease = held(
                        claims, what, say=self.screen.say, on_lost=self._interrupts.on_lost
                    )
                    opened = stack.enter_context(lease)
                yield opened
        except Interrupted:
            if self._interrupts.lost is not None:
                raise self._interrupts.lost from None
            raise

    # ---- its end ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._is_entered = True
        self._interrupts.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._engine is not None:
            close_engine(self._engine, self.screen.say)
            self._engine = None
        self._uses.close()
        self._interrupts.close()
        if isinstance(error, InputError) and self._made_storage:
            remove_empty(self.storage)
