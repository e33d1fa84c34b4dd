"""Fidelity, sanity, speed and gates, through ``Runtime`` alone."""
