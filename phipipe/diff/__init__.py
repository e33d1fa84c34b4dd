"""What changed between two recipes, packages or runs: in figures, and in what they are made of."""
