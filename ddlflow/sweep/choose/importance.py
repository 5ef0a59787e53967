"""How much each setting of a search mattered for its score."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ddlflow.spec.pipeline import SearchRange
from ddlflow.spec.search import same
from ddlflow.sweep.choose.space import Space
from ddlflow.sweep.choose.table import Outcome

if TYPE_CHECKING:
    import optuna

FEWEST = 8  # trials with a score; of fewer, nothing can be said
BEST = 0.1  # the part of the trials that counts as the best ones, where there are enough


def importances(
    space: Space, outcomes: Sequence[Outcome], better: Literal["higher", "lower"]
) -> dict[str, float]:
    """Each setting's part in being among the best trials, from 0 to 1, falling.

    By PED-ANOVA as Optuna has it, which needs no forest (and no scikit-learn). The parts of all
    settings add up to 1. Pruned trials are left out: they have the scores of fewer epochs.

    Returns:
        Nothing where too few trials have a score, or all have the same.

    Source: S. Watanabe, A. Bansal, F. Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter
    Importance in Arbitrary Subspaces" (IJCAI 2023), whose authors advise five trials or more among
    the best.
    """
    import optuna

    done = [(o, o.score) for o in outcomes if o.status == "done" and o.score is not None]
    if len(done) < FEWEST or len({score for _, score in done}) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if better == "higher" else "minimize")
    met: set[str] = set()
    for outcome, score in done:
        values = {name: space[name] for name in outcome.values if len(space[name].ends) > 1}
        met |= values.keys()
        study.add_trial(
            optuna.create_trial(
                params={name: _seen(one, outcome.values[name]) for name, one in values.items()},
                distributions={name: _distribution(one) for name, one in values.items()},
                value=score,
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(BEST, min(0.5, 5 / len(done)))
    )
    names = [name for name in space if name in met]
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], names.index(pair[0])))
    return {name: part for name, part in ordered if math.isfinite(part)}


def _distribution(one: SearchRange) -> "optuna.distributions.BaseDistribution":
    import optuna

    if one.values is not None:
        return optuna.distributions.CategoricalDistribution(range(len(one.values)))
    if one.whole:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _seen(one: SearchRange, value: Any) -> Any:
    """A value as the distribution has it: of listed ones, the position."""
    if one.values is None:
        return value
    return next(k for k, listed in enumerate(one.values) if same(listed, value))
