"""One command: its session, the stages, sweeps over the workers, and what it leaves in MLflow."""
