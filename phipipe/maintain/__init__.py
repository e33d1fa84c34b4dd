"""For developers of phipipe: locks and the table of support."""
