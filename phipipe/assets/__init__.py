"""The embedded model, its text, and the scripts that make both from nothing."""
