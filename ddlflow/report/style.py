"""One look for every plot: colours, sizes and how a figure becomes a file.

Figures are made through matplotlib's object interface (never pyplot, which keeps figures for the
whole process), so drawing needs no display and leaves nothing behind.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision.
# Source: M. Okabe, K. Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#666666"
CLASS_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY)
SEQUENTIAL = "Blues"  # light is few; prints well in grey
# The same for counts of which 0 is not drawn: 1 has to be seen on white.
COUNTS = ListedColormap(matplotlib.colormaps[SEQUENTIAL](np.linspace(0.4, 1, 256)))

STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,  # inches
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.9,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "legend.fontsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


@contextmanager
def style() -> Iterator[None]:
    """Our look and nothing of the user's matplotlibrc, so that a plot is the same everywhere."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def figure(width: float = 6.6, height: float = 5.0) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height))


def square(axes: Axes) -> None:
    """Both axes from 0 to 1, with room for a line along the edge."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")


def save(drawn: Figure, path: Path) -> Path:
    """Writes a PNG whose bytes depend on the picture alone (no version, no time)."""
    drawn.savefig(path, format="png", metadata={"Software": None})
    return path


def save_all(folder: Path, plots: Mapping[str, Callable[[], Figure]], title: str) -> list[Path]:
    """Draws each plot under one heading into a PNG of its name."""
    files = []
    with style():
        for name, draw in plots.items():
            drawn = draw()
            drawn.suptitle(title, fontsize=12.5, color="#333333")
            files.append(save(drawn, folder / f"{name}.png"))
    return files


def shown(value: float) -> str:
    """A number as a person reads it: whole with thousands, else four significant digits."""
    if math.isnan(value):
        return "undefined"
    if float(value).is_integer() and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}"
