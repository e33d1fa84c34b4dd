"""Fidelity, sanity, generation and speed, through ``Runtime`` alone."""
