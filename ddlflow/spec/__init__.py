"""WHAT to do (pipeline) and WHERE to do it (site), read from YAML and checked before any work."""
