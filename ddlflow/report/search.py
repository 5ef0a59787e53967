"""The plots of a search, as files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ddlflow.report.scales import Scale, varied
from ddlflow.report.settings import draw_importance, draw_pair, draw_parallel
from ddlflow.report.style import save_all
from ddlflow.report.trials import Better, Rows, done, draw_curves, draw_progress
from ddlflow.spec.search import SearchRange


def write_search(
    folder: Path,
    *,
    rows: Rows,
    space: Mapping[str, SearchRange],
    metric: str,
    better: Better,
    importances: Mapping[str, float],
    title: str,
) -> list[Path]:
    """Draws the plots of a search; one that has nothing to show is left out.

    Args:
        folder: where to; made if it is not there, and files of the same names replaced.
        rows: the table of the trials (`ddlflow.sweep.choose.table.rows`).
        space: that was searched.
        metric: of the scores.
        better: which scores are.
        importances: of the settings (`ddlflow.sweep.choose.importance.importances`), or nothing.
        title: the heading of every plot.

    Returns:
        The PNGs: progress, and of these what there is: learning_curves, parallel_coordinates,
        settings (scores over the two settings that matter most), importance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scales = varied(space)
    plots: dict[str, Callable[[], Figure]] = {
        "progress": lambda: draw_progress(rows, metric, better)
    }
    if any(row.curve for row in rows):
        plots["learning_curves"] = lambda: draw_curves(rows, metric, better)
    if scales and done(rows):
        plots["parallel_coordinates"] = lambda: draw_parallel(rows, scales, metric, better)
    if len(scales) > 1 and done(rows):
        across, up = _two(scales, space, importances)
        plots["settings"] = lambda: draw_pair(
            rows, across, up, metric, better, others=len(scales) > 2
        )
    if importances:
        plots["importance"] = lambda: draw_importance(importances)
    return save_all(folder, plots, title)


def _two(
    scales: Sequence[Scale], space: Mapping[str, SearchRange], importances: Mapping[str, float]
) -> tuple[Scale, Scale]:
    """The two settings that matter most, in the order of the file; else the first two.

    Those under a condition only where there are no others: most trials do not have them.
    """
    free = [scale for scale in scales if not space[scale.name].when]
    wanted = free if len(free) > 1 else scales
    most = sorted(wanted, key=lambda scale: -importances.get(scale.name, 0.0))[:2]
    across, up = (scale for scale in scales if scale in most)
    return across, up
