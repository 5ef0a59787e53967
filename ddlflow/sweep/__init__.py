"""Many trainings as one piece of work: folds, and the settings of a search."""
