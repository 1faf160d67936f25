"""Suites on a Slurm cluster: what one job does, and how jobs are submitted and waited for."""
