"""Environments of backends, each made by uv from its lock."""
