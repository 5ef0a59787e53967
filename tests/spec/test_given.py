"""Pipelines of Python's own values read as the YAML file of the same values does."""

import numpy as np
import yaml

from ddlflow.spec.given import plain


def test_keys_are_what_a_file_calls_them():
    values = {"class_weights": {True: 5, np.False_: 0.5, 3: 2, np.int64(4): np.float32(1.5)}}
    text = "class_weights: {true: 5, false: 0.5, 3: 2, 4: 1.5}"
    by_file = {str(k).lower(): v for k, v in yaml.safe_load(text)["class_weights"].items()}
    assert plain(values) == {"class_weights": by_file}
