"""Machines that share the work: Dask client and worker."""
