"""ddlflow: big tables to trained, tracked and applied PyTorch models.

From Python, the same as the command line:

    import ddlflow
    result = ddlflow.run("higgs", on="local", set={"train.epochs": 3})
    ddlflow.predict(result, "new.parquet", out="predictions")
    ddlflow.load_model(result).predict_frame(frame)
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddlflow.api import load_model as load_model
    from ddlflow.api import predict as predict
    from ddlflow.api import run as run

__all__ = ["load_model", "predict", "run"]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: `import ddlflow` costs next to nothing."""
    if name in __all__:
        import ddlflow.api as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
