"""What no single backend owns: algorithms that change weights."""
