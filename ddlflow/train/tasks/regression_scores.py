"""Scores of a regression: histograms of the residual and of (true, predicted), and sums."""

import math

import torch
from torch import Tensor

from ddlflow.data.scored import Plane, RegressionCurves, ResidualHistogram
from ddlflow.train.tasks.measures import REGRESSION
from ddlflow.train.tasks.scores import HEAD, NAN, Scores, ratio
from ddlflow.train.tasks.weights import UNIT

RESIDUAL_BINS = 8192  # over +- the label's range; `curves` merges them for a plot
GRID = 64  # cells of a side of the predicted-against-true plane
PLANE = RESIDUAL_BINS + 3  # where that plane begins in a regression's counts


class RegressionScores(Scores):
    """counts: a histogram of the residual, one of (true, predicted), unscored.

    Both have a bin below and a bin above their range: RESIDUAL_BINS + 2 bins of the residual over
    +- (high - low), and one that is never read, for unscored rows; then (GRID + 2) ** 2 cells over
    low .. high.

    Args:
        low: the label's least value.
        high: its greatest.
    """

    def __init__(self, low: float, high: float, *, weighted: bool = False) -> None:
        self.unit = UNIT if weighted else 1
        if not high > low:  # a constant label still has a plot
            low, high = low - 0.5, low + 0.5
        self.low, self.high = low, high
        self.counts = torch.zeros(PLANE + (GRID + 2) ** 2 + 1, dtype=torch.int64)
        # residual squared and absolute; label - center, also squared. The center is there so
        # that R2 of a label far from 0 keeps its digits.
        self.sums = torch.zeros(HEAD + 4, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        outputs: Tensor,
        labels: Tensor,
        loss_sum: Tensor | float,
        weights: Tensor | None = None,
        loss_weight: Tensor | float | None = None,
    ) -> None:
        # In float64: a residual is the difference of two numbers that may be large.
        predicted, true = outputs.reshape(-1).double(), labels.reshape(-1).double()
        residual, offset = predicted - true, true - self._center()
        span, scored = self.high - self.low, residual.isfinite()
        row, column = (_cell(values, self.low, self.high, GRID) for values in (true, predicted))
        # A scored row is counted twice, once in each histogram.
        plane = torch.where(scored, PLANE + row * (GRID + 2) + column, len(self.counts) - 1)
        bins = torch.where(scored, _cell(residual, -span, span, RESIDUAL_BINS), PLANE - 1)
        sums = [residual.square(), residual.abs(), offset, offset.square()]
        self._add(
            len(true),
            torch.cat([bins, plane]),
            None if weights is None else weights.repeat(2),
            (loss_sum, loss_weight),
            [self._total(values, weights) for values in sums],
        )

    def predicted_classes(self) -> None:
        return None

    def compute(self) -> dict[str, float]:
        scored = float(self._of_rows(self.counts[PLANE:-1].sum()))
        squared, absolute, offset, offset_squared = self.sums[HEAD:].tolist()
        mse = ratio(squared, scored)
        # Not torchmetrics' R2: it takes any sum of squares below 1e-4 for 0, whatever the label's
        # unit, so that a bad model of a label in small units would score 1.
        spread = offset_squared - ratio(offset, scored) * offset
        constant = not spread > 1e-12 * offset_squared  # what is left is rounding
        return self._finish(
            REGRESSION.names,
            {
                "mse": mse,
                "rmse": math.sqrt(mse) if mse >= 0 else NAN,
                "mae": ratio(absolute, scored),
                "r2": NAN if constant else 1 - squared / spread,
            },
        )

    def curves(self) -> RegressionCurves:
        """Residuals over the range that holds 99 % of them; rows over (true, predicted)."""
        counts = self._of_rows(self.counts.cpu())
        plane = counts[PLANE:-1].reshape(GRID + 2, GRID + 2)
        inside = plane[1:-1, 1:-1]
        edges = torch.linspace(self.low, self.high, GRID + 1, dtype=torch.float64)
        outside = int(plane.sum() - inside.sum())
        return RegressionCurves(
            residuals=_zoomed(counts[: PLANE - 1], self.high - self.low),
            predicted_against_true=Plane(edges.tolist(), inside.tolist(), outside),
        )

    def _center(self) -> float:
        return (self.low + self.high) / 2


def _cell(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """1 .. bins for low <= value <= high, 0 below, bins + 1 above; int64 [n]."""
    cell = ((values - low) * (bins / (high - low))).floor() + 1
    # The range is closed: the greatest label is in the last bin.
    cell = torch.where(values == high, bins, cell.nan_to_num().clamp(0, bins + 1))
    return cell.long()


def _zoomed(counts: Tensor, span: float, side: int = 30) -> ResidualHistogram:
    """A residual histogram of 2 * side bins, merged from the middle that holds 99 % of the rows.

    Args:
        counts: rows below, in RESIDUAL_BINS equal bins over -span .. span, and above.
        span: the label's greatest less its least value.
        side: bins on each side of 0.
    """
    inner, half = counts[1:-1], RESIDUAL_BINS // 2
    outward = (inner[:half].flip(0) + inner[half:]).cumsum(0)  # rows within k bins of 0
    reach = int((outward < 0.99 * int(counts.sum())).sum()) + 1
    merged = min(-(-reach // side), half // side)  # fine bins in one bin of the plot
    width = side * merged
    shown = inner[half - width : half + width].reshape(2 * side, merged).sum(1)
    edge = span * width / half
    below = int(counts[: 1 + half - width].sum())
    return ResidualHistogram(
        edges=torch.linspace(-edge, edge, 2 * side + 1, dtype=torch.float64).tolist(),
        counts=shown.tolist(),
        below=below,
        above=int(counts.sum() - shown.sum()) - below,
    )
