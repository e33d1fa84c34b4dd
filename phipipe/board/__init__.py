"""Builds side by side: entries gathered, picks, table, page."""
