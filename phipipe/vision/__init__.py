"""The parts of models that see."""
