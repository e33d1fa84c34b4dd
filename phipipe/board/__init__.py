"""Builds side by side: entries, picks, table, page."""
