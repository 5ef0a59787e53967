"""A search under way: trials are asked for, trained rung by rung, and told to the sampler."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from ddlflow.errors import SpecError, TrainingError
from ddlflow.runs import spread
from ddlflow.runs.events import OnTrial
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import TRIALS_TABLE, PrepareResult, SearchResult
from ddlflow.runs.session import Session
from ddlflow.runs.trial_members import member_ids, trial_of, trials_of
from ddlflow.spec.pipeline import Pipeline, Training
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store
from ddlflow.sweep.choose.halving import Better, TrialGroup, groups, keep
from ddlflow.sweep.choose.sampler import Trial, sampler_of
from ddlflow.sweep.choose.space import metric_of, settings
from ddlflow.sweep.choose.table import Outcome, best, rows
from ddlflow.sweep.member import Member
from ddlflow.sweep.member_result import MemberResult
from ddlflow.sweep.place import Where
from ddlflow.sweep.task import Asynchronous, PieceTask
from ddlflow.train.auto import resolve

Key = tuple[int, str]  # (repeat of the folds, member): a training
CLOCK = "clock.json"  # seconds that earlier commands took


@dataclass(slots=True)
class Searching:
    """A search under way.

    Attributes:
        session: with the engine and the pipeline.
        folder: of the stage.
        where: it trains, a place a repeat of the folds.
        data: the prepared data, as ``where``.
        on_trial: gets each trial as it ends.
        outcomes: of the trials that have ended.
        begun: trials with a training that was begun.
        began: when this process began, monotonic.
        before_s: seconds that processes before this one have searched.
        fused: trainings in stacks so far.
        trained: trainings so far.
    """

    session: Session
    folder: Store
    where: list[Where]
    data: list[Stage[PrepareResult]]
    on_trial: OnTrial
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    before_s: float = 0.0
    fused: int = 0
    trained: int = 0

    def run(self) -> SearchResult:
        """Searches to the end; returns the stage's value."""
        pipeline = self.session.request.pipeline
        spec = pipeline.search
        assert spec is not None
        metric, better = metric_of(pipeline)
        self.before_s = (documents.load(self.folder, CLOCK) or {"seconds": 0.0})["seconds"]
        sampler = sampler_of(spec, better)
        for group in groups(spec, sampler.num_trials, self._settled(pipeline).epochs):
            if not self._in_time() and not self._is_begun(group):
                break
            trials = sampler.ask(group.size)
            if not trials:
                break  # forward: no further value makes the score better
            self._group(group, [t for t in trials if self._is_allowed(t)], metric, better)
            for trial in trials:
                found = self.outcomes.get(trial.number)
                if found is None:
                    sampler.tell(trial.number, None)  # not begun: the time is over
                else:
                    ended_early = found.epochs if found.status == "pruned" else None
                    sampler.tell(trial.number, found.score, ended_early)
        table = rows(self.outcomes.values())
        winner = best(self.outcomes.values(), better)
        if winner is None:
            raise TrainingError(self._nothing())
        documents.save(
            self.folder,
            TRIALS_TABLE,
            {"trials": [asdict(row) for row in table], "metric": metric, "better": better},
        )
        row = next(row for row in table if row.number == winner.number)
        return SearchResult(
            metric=metric,
            better=better,
            best=row,
            trials=len(table),
            statuses={s: sum(r.status == s for r in table) for s in ("done", "pruned", "failed")},
            trainings=self.trained,
            fused=self.fused,
            search_seconds=self._elapsed(),
            rows=self.data[0].value.rows,
        )

    def _is_allowed(self, trial: Trial) -> bool:
        """Whether a training takes the values: between a range's ends it may take less."""
        try:
            settings(self.session.request.pipeline, trial.values)
        except SpecError as error:
            refused = Outcome(trial.number, trial.values, "failed", reason=str(error))
            self.outcomes[trial.number] = refused
            (row,) = rows([refused])
            self.on_trial(row)
            return False
        return True

    def _group(
        self, group: TrialGroup, trials: Sequence[Trial], metric: str, better: Better
    ) -> None:
        """Trains a group of trials, rung by rung; those that end become outcomes."""
        pipeline = self.session.request.pipeline
        spec = pipeline.search
        assert spec is not None
        cut = [
            spread.cut(
                self.session,
                self._folder(group).at(f"repeat-{repeat}"),
                place,
                self._members(trials, stage),
                pipeline.sweep,
            )
            for repeat, (place, stage) in enumerate(zip(self.where, self.data, strict=True))
        ]
        self.fused += sum(one.fused for one in cut)
        self.trained += sum(len(task.members) for one in cut for task in one.tasks)
        results: dict[Key, MemberResult] = {}  # (repeat, member) -> the last rung's
        dropped: set[int] = set()
        self.begun |= {
            number
            for one in cut
            for task in one.tasks
            if open_store(task.folder).list()
            for number in trials_of(task)
        }
        alone = self._alone(group, metric, better)

        def take(repeat: int, found: list[MemberResult]) -> None:
            sound = (one for one in found if trial_of(one.id) not in dropped)
            results.update({(repeat, one.id): one for one in sound})
            self._end_trials(trials, results, dropped, metric)

        rungs = group.rungs if alone is None else group.rungs[-1:]
        for rung in rungs:
            until = None if rung == rungs[-1] else rung
            for repeat, one in enumerate(cut):
                self._train(one, partial(take, repeat), until, dropped, alone)
            if until is not None:
                assert spec.pruning is not None
                alive = {
                    trial.number: self._outcome(trial, results, metric).score
                    for trial in trials
                    if trial.number not in dropped and self._is_whole(trial, results)
                }
                dropped |= alive.keys() - set(keep(alive, spec.pruning.factor, better))
                self._end_trials(trials, results, dropped, metric)

    def _train(
        self,
        cut: spread.Pieces,
        on_results: spread.OnResults,
        until: int | None,
        dropped: set[int],
        alone: Asynchronous | None,
    ) -> None:
        """One repeat's pieces to the rung: what came of the members that were still going."""

        def heard(results: list[MemberResult]) -> None:
            documents.save(self.folder, CLOCK, {"seconds": self._elapsed()})
            on_results(results)

        ids = (m.id for task in cut.tasks for m in task.members)
        gone = frozenset(id_ for id_ in ids if trial_of(id_) in dropped)
        left = [t for t in cut.tasks if any(m.id not in gone for m in t.members)]
        left.sort(key=lambda task: min(trials_of(task)))  # a trial's folds side by side
        spread.train(
            self.session,
            replace(cut, tasks=tuple(left)),
            heard,
            until=until,
            dropped=gone,
            alone=alone,
            may_begin=self._may_begin,
        )

    def _may_begin(self, task: PieceTask) -> bool:
        """In time, or a trial's that was begun in time."""
        numbers = trials_of(task)
        if not self._in_time() and self.begun.isdisjoint(numbers):
            return False
        self.begun |= numbers
        return True

    def _end_trials(
        self,
        trials: Sequence[Trial],
        results: dict[Key, MemberResult],
        dropped: set[int],
        metric: str,
    ) -> None:
        """Makes outcomes of the trials that have ended; each is reported once."""
        for trial in trials:
            if trial.number in self.outcomes or not self._is_whole(trial, results):
                continue
            going = any(results[key].status == "going" for key in self._keys(trial))
            if going and trial.number not in dropped:
                continue
            found = self._outcome(trial, results, metric)
            self.outcomes[trial.number] = found
            (row,) = rows([found])
            self.on_trial(row)

    def _is_whole(self, trial: Trial, results: dict[Key, MemberResult]) -> bool:
        """Whether all of a trial's trainings have a result."""
        return all(key in results for key in self._keys(trial))

    def _keys(self, trial: Trial) -> list[Key]:
        return [
            (repeat, member)
            for repeat, stage in enumerate(self.data)
            for member in member_ids(trial.number, self._folds(stage))
        ]

    def _outcome(self, trial: Trial, results: dict[Key, MemberResult], metric: str) -> Outcome:
        found = [results[key] for key in self._keys(trial)]
        failed = [one for one in found if one.status == "failed"]
        is_done = all(one.status == "done" for one in found)
        return Outcome(
            number=trial.number,
            values=trial.values,
            status="failed" if failed else "done" if is_done else "pruned",
            scores=() if failed else tuple(spread.score_of(one, metric) for one in found),
            seconds=sum(one.seconds for one in found),
            epochs=max(len(one.history) for one in found),
            reason=failed[0].reason if failed else None,
            ended_s=self._elapsed(),
            curve=() if failed else spread.curve_of(found, metric),
        )

    def _members(self, trials: Sequence[Trial], stage: Stage[PrepareResult]) -> list[Member]:
        members = []
        folds = self._folds(stage)
        for trial in trials:
            setting = settings(self.session.request.pipeline, trial.values)
            ids = member_ids(trial.number, folds)
            members += [
                Member(id_, setting.model, self._settled(setting), fold)
                for id_, fold in zip(ids, folds, strict=True)
            ]
        return members

    def _settled(self, setting: Pipeline) -> Training:
        """A setting's train section, with numbers: a space may hold ``auto``."""
        rows = self.data[0].value.rows
        return resolve(setting.train, rows["train"], rows["validation"])

    def _folds(self, stage: Stage[PrepareResult]) -> Sequence[int | None]:
        spec = self.session.request.pipeline.search
        assert spec is not None
        return range(stage.value.folds) if spec.cv else [None]

    def _alone(self, group: TrialGroup, metric: str, better: Better) -> Asynchronous | None:
        spec = self.session.request.pipeline.search
        assert spec is not None
        if spec.pruning is None or spec.pruning.use != "async_halving":
            return None
        folder = self.folder.at("rungs").location
        return Asynchronous(folder, group.rungs, spec.pruning.factor, metric, better)

    def _folder(self, group: TrialGroup) -> Store:
        return self.folder.at(f"trials-{group.first:05d}")

    def _is_begun(self, group: TrialGroup) -> bool:
        return self._folder(group).exists("repeat-0/plan.json")

    def _elapsed(self) -> float:
        return self.before_s + time.monotonic() - self.began

    def _in_time(self) -> bool:
        spec = self.session.request.pipeline.search
        assert spec is not None
        return spec.time_s is None or self._elapsed() < spec.time_s

    def _nothing(self) -> str:
        reasons = [one.reason for one in self.outcomes.values() if one.reason]
        if not self.outcomes:
            return "The search's time was over before a trial ended. Give search.time_s more."
        why = f"; the first failed: {reasons[0]}" if reasons else ""
        text = f"None of {len(self.outcomes)} trials was trained to its end with a score{why}"
        return f"{text.rstrip('.')}. Correct that, or try them again with --fresh."
