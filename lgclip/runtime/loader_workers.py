"""Starts the worker processes of data loaders: never by a fork, and silent when a run is stopped."""

import multiprocessing
import sys
from types import TracebackType
from typing import Any

_CUT_CONNECTION = (ConnectionError, EOFError)
"""Errors of a worker whose connection to the main process ends in the middle of a message."""


def worker_settings(workers: int) -> dict[str, Any]:
    """Returns the arguments of a `DataLoader` that decide on its worker processes.

    Args:
        workers: Number of worker processes; 0 loads in the main process.
    """
    if workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "multiprocessing_context": _start_method(),
        "worker_init_fn": ignore_cut_connections,
    }


def _start_method() -> str:
    """Returns how worker processes start: never by forking this one.

    This process already has threads (tokenizers, writers, CUDA), and a fork of a process with threads
    can deadlock on a lock that one of them held. A fork server has none.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # Imported once for all workers: torch, and what every preprocessing is made of.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["lgclip.stages.streams", "torchvision.transforms"]
    )
    return "forkserver"


def ignore_cut_connections(worker: int) -> None:
    """Keeps a worker silent when the main process is stopped while it fetches a tensor.

    The thread of `multiprocessing.resource_sharer`, which hands a tensor's memory over, prints a stack trace then. An
    error of the data set takes another way: torch sends it to the main process.

    Args:
        worker: Number of the worker, which torch passes.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, _CUT_CONNECTION):
            previous(kind, error, trace)

    sys.excepthook = hook
