"""The download step: checkpoints from a folder, from the package or from a hub."""
