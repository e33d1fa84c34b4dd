"""Where Prefect deployments of earlier versions look for the flow."""

from phipipe.batch.prefect import batch as batch
