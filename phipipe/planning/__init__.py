"""Recipe × device × backend → steps; every cross-check; cost."""
