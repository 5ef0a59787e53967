"""The project's own flow."""
