"""Which settings are trained, and which of them go on."""
