"""ddlflow: big tables to trained, tracked and applied PyTorch models.

From Python, the same as the command line:

    import ddlflow
    result = ddlflow.run("higgs", on="local", set={"train.epochs": 3})
    ddlflow.predict(result["model_uri"], "new.parquet", out="predictions")
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddlflow.commands import predict as predict
    from ddlflow.commands import run as run
    from ddlflow.infer.model import load_model as load_model

__all__ = ["load_model", "predict", "run"]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: `import ddlflow` costs next to nothing."""
    if name == "load_model":
        from ddlflow.infer.model import load_model

        return load_model
    if name in {"run", "predict"}:
        import ddlflow.commands as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
