"""Which fault comes upon which training, and when: drawn from a seed alone."""

import random
from collections.abc import Collection
from dataclasses import dataclass

TRAININGS = 22
RECORDED = 3  # trainings that keep an MLflow run: the first ones
STEPS = 290  # of a training

KILLED_RANK = "rank, kill -9"
STOPPED_RANK = "rank, SIGSTOP"
KILLED_WORKER = "worker, kill -9"
STOPPED_WORKER = "worker, SIGSTOP"
KILLED_NANNY = "nanny, kill -9"
KILLED_DRIVER = "driver, kill -9"
ADDED_WORKER = "worker added"
FULL_DISK = "disk full"
CUT_WORKER = "network: a worker cut off"
CUT_RANKS = "network: cut between ranks"
FLIPPED_BYTE = "checkpoint, a byte flipped"
AWAY_MLFLOW = "MLflow server, kill -9"

# How many of each.
DECK = {
    KILLED_RANK: 8,
    STOPPED_RANK: 5,
    KILLED_WORKER: 7,
    STOPPED_WORKER: 4,
    KILLED_NANNY: 5,
    KILLED_DRIVER: 6,
    ADDED_WORKER: 4,
    FULL_DISK: 6,
    CUT_WORKER: 4,
    CUT_RANKS: 3,
    FLIPPED_BYTE: 5,
    AWAY_MLFLOW: 4,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: of `DECK`.
        at_step: comes once this step is done; None: while the next attempt starts, be it the first
            or the one that the fault before has made necessary.
        after_s: and so much later.
        pick: from 0 to 1: which of the ranks or workers that are there.
        lasts_s: until what ends by itself is over.
    """

    kind: str
    at_step: int | None
    after_s: float
    pick: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Course:
    """One training's faults, in order.

    Attributes:
        number: of the training, from 1.
        workers: as the site's ``engine.workers``.
        recorded: whether it keeps an MLflow run.
        faults: that come upon it.
    """

    number: int
    workers: int
    recorded: bool
    faults: tuple[Fault, ...]


def draw(seed: int, kinds: Collection[str], trainings: int = TRAININGS) -> list[Course]:
    """The whole suite's faults of these kinds."""
    chance = random.Random(seed)
    share = trainings / TRAININGS
    deck = [kind for kind, number in DECK.items() for _ in range(max(1, round(number * share)))]
    chance.shuffle(deck)
    hands: list[list[str]] = [[] for _ in range(trainings)]
    deck.sort(key=lambda kind: kind != AWAY_MLFLOW)  # first, to those that have a server to miss
    for k, kind in enumerate(kind for kind in deck if kind in kinds):
        hands[k % (RECORDED if kind == AWAY_MLFLOW else trainings)].append(kind)
    courses = []
    for k, hand in enumerate(hands):
        chance.shuffle(hand)
        workers = chance.choice((1, 2, 2, 3))
        steps = sorted(chance.uniform(0.02, 0.85) * STEPS for _ in hand)
        faults = [
            Fault(
                kind=kind,
                at_step=None if chance.random() < 0.2 else int(step),
                after_s=chance.uniform(0, 0.4),
                pick=chance.random(),
                lasts_s=chance.uniform(1.5, 12),
            )
            for kind, step in zip(hand, steps, strict=True)
        ]
        courses.append(Course(k + 1, workers, k < RECORDED, tuple(faults)))
    return courses
