"""Where the time of a run went: read from its events, as a table and as a page."""
