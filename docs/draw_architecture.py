"""Draws architecture.png: the rooms, each above what it imports, and the way of a batch.

python docs/draw_architecture.py
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT, LINE = "#1F2933", "#52606D", "#9AA5B1"
FACES = {"face": "#FDE8C8", "run": "#DCEBFA", "work": "#DDF3E4", "ground": "#ECEFF3"}
# Rows from the top: each room imports rooms of lower rows alone.
ROOMS = [
    [("cli/", "the command line", "face"), ("flows/pipeline.py", "the project's flow", "face")],
    [
        ("spark/", "in Spark's SQL and ML", "face"),
        ("api.py", "what scripts call", "face"),
        ("flow_api.py", "what flows call", "face"),
    ],
    [("history/", "reproduce, compare, audit", "run"), ("flow/", "Prefect", "run")],
    [("runs/", "one command: session, stages, record", "run")],
    [
        ("sweep/", "many trainings", "work"),
        ("infer/", "apply a model", "work"),
        ("report/", "plots", "work"),
        ("engines/", "local, Dask", "work"),
        ("tracking/", "MLflow", "work"),
    ],
    [("train/", "one training: loop, tasks, parallel, saved", "work")],
    [("models/", "nets: plain nn.Module", "work")],
    [("data/", "sources, prepare, shards: rows", "work")],
    [("store/", "folder or object store", "ground")],
    [("spec/", "what is asked: YAML to Request", "ground"), ("errors.py", "redact.py", "ground")],
]
BATCH = [
    ("a row of a file or table", "data/sources/"),
    ("range by range, as Arrow columns", "data/sources/source.py: read"),
    ("split, fold, vocabulary, counts", "data/prepare/scan.py, plan.py"),
    ("numbers and codes in a shard", "data/prepare/write.py, data/shards/shard.py"),
    ("its place in the epoch: lane, step", "data/shards/order.py"),
    ("read, standardised, padded", "data/shards/rows.py"),
    ("a slice: field name to tensor", "data/shards/batches.py"),
    ("the model, by its forward's names", "models/call.py"),
    ("loss: total and count", "train/tasks/task.py"),
    ("gradients added along one tree, divided once", "train/parallel/whole.py, tree.py"),
    ("the optimizer's step", "train/optimizer_step.py"),
]


def box(axes: Axes, x: float, y: float, size: tuple[float, float], colour: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), *size, boxstyle=style, fc=colour, ec=LINE, lw=1.0))


def draw_rooms(axes: Axes) -> None:
    width, height, gap = 8.4, 0.74, 0.2
    for number, row in enumerate(ROOMS):
        y = 10 - number * (height + gap)
        share = (width - gap * (len(row) - 1)) / len(row)
        for place, (name, what, colour) in enumerate(row):
            x = place * (share + gap)
            box(axes, x, y, (share, height), FACES[colour])
            middle = x + share / 2
            bold = {"ha": "center", "va": "center", "weight": "bold", "color": INK}
            axes.text(middle, y + 0.48, name, fontsize=11.5, **bold)
            small = 9.5 if len(row) < 3 else 8.5
            axes.text(middle, y + 0.2, what, ha="center", va="center", fontsize=small, color=SOFT)


def draw_batch(axes: Axes) -> None:
    left, width, height, step = 9.9, 5.7, 0.62, 0.93
    for number, (what, where) in enumerate(BATCH):
        y = 10.1 - number * step
        box(axes, left, y, (width, height), "#FFFFFF")
        axes.text(left + 0.2, y + 0.41, what, va="center", fontsize=11, color=INK)
        axes.text(
            left + 0.2, y + 0.17, where, va="center", fontsize=9, color=SOFT, family="monospace"
        )
        if number + 1 < len(BATCH):
            ends = (left + width / 2, y), (left + width / 2, y - (step - height))
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=SOFT))


def main() -> None:
    figure = Figure((15.8, 11.2), dpi=110, facecolor="white")
    axes = figure.add_axes((0.015, 0.01, 0.97, 0.98))
    heading = {"fontsize": 14, "weight": "bold", "color": INK}
    axes.text(0, 11.0, "The rooms: each imports rooms below it alone", **heading)
    axes.text(9.9, 11.0, "The way of a row, from its source to the gradient", **heading)
    draw_rooms(axes)
    draw_batch(axes)
    axes.set(xlim=(-0.1, 15.7), ylim=(0.6, 11.4))
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("architecture.png"))


if __name__ == "__main__":
    main()
