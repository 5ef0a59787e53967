"""The versions of the stages: what an earlier one made is not taken for a later one's."""

from ddlflow.runs.exports import EXPORT_VERSION
from ddlflow.runs.samples import SAMPLE_VERSION

# A stage's own version: raised when its result changes for the same settings.
VERSION = {
    "source": SAMPLE_VERSION,
    "export": EXPORT_VERSION,
    "prepare": 5,
    "train": 5,
    "evaluate": 5,
    "report": 1,
    "infer": 3,
    "example": 1,
}
