"""Several processes that train one model: joining, agreeing when to stop, and ending together.

Every process runs the same command. Which they are is told by gin (``hosts.coordinator``, …), by the environment
(``MSCALE_COORDINATOR=host:port``, ``MSCALE_PROCESSES``, ``MSCALE_PROCESS_ID``), or, with the coordinator
``"auto"``, by the cluster (Slurm, Open MPI, TPU), as ``jax.distributed`` reads it. When one process dies, the
collectives of the others fail or their heartbeats go unanswered, and they exit with an error too.
"""

import contextlib
import functools
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mscale.errors import MscaleError

_HEARTBEAT_TIMEOUT_SECONDS = 60
"""A process that has not been heard of for so long is dead."""


def initialize(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; alone, and where that was done already, nothing happens.

    Args:
      coordinator: "host:port" of process 0, "auto" where the cluster tells, or None for the environment's.
      processes: how many there are.
      process_id: which this one is, from 0.

    Raises:
      MscaleError: the three are not all given or make no sense, or the others cannot be reached.
    """
    coordinator = coordinator or os.environ.get("MSCALE_COORDINATOR")
    if not coordinator or jax.distributed.is_initialized():
        return
    processes = _count("MSCALE_PROCESSES", processes)
    process_id = _count("MSCALE_PROCESS_ID", process_id)
    auto = coordinator == "auto"
    if not auto:
        if processes is None or process_id is None:
            raise MscaleError(
                f"the coordinator is {coordinator} but hosts.processes (MSCALE_PROCESSES) is {processes} and "
                f"hosts.process_id (MSCALE_PROCESS_ID) is {process_id}: give both"
            )
        if not 0 <= process_id < processes:
            raise MscaleError(
                f"hosts.process_id is {process_id} of {processes} processes: expected 0 to {processes - 1}"
            )
        if not coordinator.rpartition(":")[2].isdecimal():
            raise MscaleError(f"hosts.coordinator is {coordinator!r}: expected host:port, or 'auto'")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # mscale stops at SIGTERM itself (``Agreement``); jax would take the signal from it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            None if auto else coordinator,
            processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise MscaleError(
            f"process {process_id} of {processes} cannot join the coordinator {coordinator}: "
            f"{str(error).splitlines()[0]}; start all processes within five minutes, with the same address"
        ) from error


def _count(variable: str, given: int | None) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise MscaleError(f"{variable} is {text!r} in the environment: expected a whole number")
    return int(text)


@functools.cache
def _any(mesh: Mesh):
    return jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))


class GlobalStopSignal:
    """All hosts learn at the same step that one of them was told to stop.

    Each dispatch of training steps carries the hosts' flags along; what came of it is read when that dispatch is
    waited for anyway, so agreeing never makes the devices wait.
    """

    def __init__(self, mesh: Mesh | None, stop: threading.Event):
        self.mesh = mesh if jax.process_count() > 1 else None
        self.stop = stop

    def ask(self) -> jax.Array | None:
        """Sends this host's flag; every host calls it once per dispatch."""
        if self.mesh is None:
            return None
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        flag = np.full(self.mesh.size, self.stop.is_set(), np.int32)
        return _any(self.mesh)(jax.make_array_from_callback(flag.shape, sharding, lambda index: flag[index]))

    def reached(self, asked: jax.Array | None) -> bool:
        """Whether any host was told to stop when ``asked`` was sent; alone, whether this one is now."""
        return self.stop.is_set() if asked is None else bool(asked.addressable_data(0))


def broadcast_from_first(value: int) -> int:
    """Returns process 0's ``value`` on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def exit_at_once_on_error() -> Iterator[None]:
    """Ends the process at once at an error, where there are others: else it would wait for them to end."""
    try:
        yield
    except BaseException as error:
        failed = not isinstance(error, SystemExit) or error.code not in (None, 0, 143)
        if failed and jax.distributed.is_initialized():
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        raise
