"""Where runs are trained: this machine, Slurm, GKE; their state and what a user does to it.

What other folders import from here:

- `local`: worker processes.
- `slurm`: arrays of jobs.
- `gke`: JobSets on TPU slices.
- `job`: one run as one job of a cluster.
- `state`: what is done, running and failed.
- `actions`: logs, retry, cancel, watch.
"""

__all__ = ["actions", "gke", "job", "local", "slurm", "state"]
