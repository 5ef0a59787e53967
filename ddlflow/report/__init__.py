"""Plots and the written report of a run."""
