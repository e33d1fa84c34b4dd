"""Packages on their way to others and from them: a hub, an OCI registry, a bucket."""
