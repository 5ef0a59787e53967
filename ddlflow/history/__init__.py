"""Recorded runs: made again, proved, and beside each other."""
