"""Many members as one batched program."""
