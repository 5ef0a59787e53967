"""What the ranks of a training said of themselves: compared, kept with it, recorded.

``ranks.json`` in a training's folder has an entry an attempt: its number and each rank's facts. A
training that went on elsewhere after a command was killed has those of both places.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ddlflow.errors import TrainingError
from ddlflow.runs.result_json import from_json
from ddlflow.runs.results import AttemptRanks
from ddlflow.store import documents
from ddlflow.store.store import Store
from ddlflow.train.facts import Facts, deciding, unlike

FILE = "ranks.json"


class Gathering:
    """The facts of one attempt's ranks as they come; all are there before the first step is done.

    Args:
        folder: of the training.
        world: how many ranks there will be.
        device: that they train on.
        must_be_alike: whether last bits are promised.
        say: takes a sentence about what is unlike, and allowed.
    """

    def __init__(
        self,
        folder: Store,
        world: int,
        device: str,
        *,
        must_be_alike: bool,
        say: Callable[[str], Any],
    ) -> None:
        self._folder, self._world, self._device = folder, world, device
        self._must_be_alike, self._say = must_be_alike, say
        self._ranks: dict[int, Facts] = {}

    def add(self, rank: int, facts: Facts) -> None:
        """Takes what a rank said; with the last one, compares all and keeps them.

        Raises:
            TrainingError: they would not compute the same bits, which are promised.
        """
        self._ranks[rank] = facts
        if len(self._ranks) < self._world:
            return
        self._ranks = dict(sorted(self._ranks.items()))
        found = unlike(self._ranks, self._device)
        if found and self._must_be_alike:
            raise TrainingError(
                f"The ranks would not compute the same bits: {found}. Use workers of one kind, or "
                "set train.determinism: world or off."
            )
        if found:
            self._say(f"the ranks are unlike: {found}")
        self._keep()

    def _keep(self) -> None:
        earlier = ranks_of_attempts(self._folder)
        if earlier:
            both = (earlier[-1].ranks[0], self._ranks[0])
            was, is_ = (deciding(facts, self._device) for facts in both)
            changed = [
                f"{name} was {was[name]}, now {is_[name]}" for name in was if was[name] != is_[name]
            ]
            if changed:
                what = "; ".join(changed)
                self._say(f"goes on where last bits may differ: {what}")
        now = AttemptRanks(len(earlier) + 1, tuple(self._ranks.values()))
        documents.save(self._folder, FILE, [asdict(entry) for entry in (*earlier, now)], indent=1)


def ranks_of_attempts(folder: Store) -> list[AttemptRanks]:
    """The ranks of a training's attempts, oldest first."""
    entries = json.loads(folder.read(FILE)) if folder.exists(FILE) else []
    return [from_json(AttemptRanks, entry, f"{folder.location}/{FILE}") for entry in entries]


def said(folder: Store) -> dict[str, str]:
    """Of all a training's ranks: versions, processor, hosts, GPUs; unlike values side by side."""
    return together([facts for entry in ranks_of_attempts(folder) for facts in entry.ranks])


def together(all_facts: list[Facts]) -> dict[str, str]:
    """Versions by name, ``machine``, ``hosts`` and ``gpus``; unlike values side by side."""
    found: dict[str, dict[str, None]] = {}
    for facts in all_facts:
        values = {**facts.versions, "machine": facts.processor, "hosts": facts.host}
        for name, value in (*values.items(), *(("gpus", gpu) for gpu in facts.gpus)):
            found.setdefault(name, {})[value] = None
    return {name: " and ".join(values) for name, values in found.items()}
