"""The MLflow face of a ddlflow model: logged as this file (models from code), never as a pickle.

MLflow runs this file alone, wherever the model is served, and takes what ``set_model`` gives it.
"""

import importlib
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow ships no types
    """Predicts with the ddlflow model folder that is the artifact ``model``."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that MLflow fetched."""
        # By name, not by an import statement: this file runs where the model is served, on top of
        # an installed ddlflow; within ddlflow the tracking layer does not know how to infer.
        infer = importlib.import_module("ddlflow.infer.model")
        # Whoever serves a model runs code that it brings: this very file.
        self._model = infer.load_model(Path(context.artifacts["model"]), trust_code=True)

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """Predictions, one row a row of the input."""
        predictions: pandas.DataFrame = self._model.predict_frame(model_input)
        return predictions


mlflow.models.set_model(Served())
