"""The real services that the fleet's tests run against."""

from tests.services.slurm import slurm

__all__ = ["slurm"]
