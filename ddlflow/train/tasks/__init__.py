"""What is minimised, measured and predicted."""
