"""Strangers' templates and tokenizers, tried in a child with limits."""
