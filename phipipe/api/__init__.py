"""phipipe from Python; ``import phipipe`` gives the names."""
