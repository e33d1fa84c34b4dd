"""Processes that we start: how they are launched, served and ended."""
