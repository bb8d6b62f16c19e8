"""Several processes that train one model: connecting them, stopping all at the same step, exiting on errors.

Every process runs the same command. Its number and the coordinator's address come from gin
(``hosts.coordinator``, …), from the environment (``MSCALE_COORDINATOR=host:port``, ``MSCALE_PROCESSES``,
``MSCALE_PROCESS_ID``), or, with the coordinator ``"auto"``, from the cluster (Slurm, Open MPI, TPU), as
``jax.distributed`` detects it. When one process dies, the collectives of the others fail or their heartbeats time
out, and they exit with an error too.
"""

import contextlib
import functools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mscale.errors import MscaleError
from mscale.run_folder import PREEMPTED_EXIT_STATUS

_HEARTBEAT_TIMEOUT_SECONDS = 60  # a process without a heartbeat for so long counts as dead


def initialize(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Initialises ``jax.distributed``; without a coordinator, or where that was done already, does nothing.

    Args:
      coordinator: "host:port" of process 0, "auto" for the cluster's, or None for MSCALE_COORDINATOR.
      processes: number of processes; None for MSCALE_PROCESSES.
      process_id: number of this process, from 0; None for MSCALE_PROCESS_ID.

    Raises:
      MscaleError: a value is missing or invalid, or the other processes cannot be reached.
    """
    coordinator = coordinator or os.environ.get("MSCALE_COORDINATOR")
    if not coordinator or jax.distributed.is_initialized():
        return
    processes = _or_from_environment("MSCALE_PROCESSES", processes)
    process_id = _or_from_environment("MSCALE_PROCESS_ID", process_id)
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
    # mscale handles SIGTERM itself (``GlobalStopSignal``); JAX's preemption service would replace that handler.
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


def _or_from_environment(variable: str, value: int | None) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    if not text.isdecimal():
        raise MscaleError(f"{variable} is {text!r} in the environment: expected a whole number")
    return int(text)


@functools.cache
def _jitted_max(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Maximum over an array that is split over all devices; the result is on every device."""
    return jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))


class GlobalStopSignal:
    """All-reduce of the hosts' stop flags, so that a signal to one host stops all of them at the same step.

    A reduction is started with every dispatch of training steps, and its result is read when the host waits for
    that dispatch anyway. The devices therefore never wait for it.
    """

    def __init__(self, mesh: Mesh | None, stop: threading.Event):
        """``stop`` is this host's flag; with one process no reduction is needed and ``mesh`` is not used."""
        self.mesh = mesh if jax.process_count() > 1 else None
        self.stop = stop

    def start_reduction(self) -> jax.Array | None:
        """Starts the all-reduce of the flags; every host calls it once per dispatch. None with one process."""
        if self.mesh is None:
            return None
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        flag = np.full(self.mesh.size, self.stop.is_set(), np.int32)
        return _jitted_max(self.mesh)(
            jax.make_array_from_callback(flag.shape, sharding, lambda index: flag[index])
        )

    def is_set(self, reduction: jax.Array | None) -> bool:
        """Whether any host's flag was set when ``reduction`` started; with one process, whether it is set now."""
        return self.stop.is_set() if reduction is None else bool(reduction.addressable_data(0))


def broadcast_from_first(value: int) -> int:
    """Returns the ``value`` of process 0 on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def exit_at_once_on_error() -> Iterator[None]:
    """Exits the process immediately on an error if there are several processes.

    A normal exit would run JAX's shutdown, which waits for the other processes.
    """
    try:
        yield
    except BaseException as error:
        failed = not isinstance(error, SystemExit) or error.code not in (None, 0, PREEMPTED_EXIT_STATUS)
        if failed and jax.distributed.is_initialized():
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        raise
