"""A trained model over any number of rows."""
