"""Manifest, card, figures, and the gate for strangers' packages."""
