"""Bits for each matrix under a budget: what each costs, the best choice at
every size, proof on built files."""
