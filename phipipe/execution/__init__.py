"""The bench that does steps: graph, processes, events."""
