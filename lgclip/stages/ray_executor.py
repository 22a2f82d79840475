"""Computes stages by the actors of a Ray cluster: `executor=ray`.

The driver divides what is missing into shards (see `sharding`) and deals them to actors, each of which has loaded the
model once, runs the stage's own `predict_step`, and writes to the store itself. No result passes through the driver,
and what a lost actor has stored stays.

Ray Core and not Ray Data: `map_batches` repartitions blocks by size, so that a pass would not keep its rows, and leaves
out a whole block where one item fails (`max_errored_blocks`). `ray.util.ActorPool` loses its order of work with an
actor that dies, and repeats nothing. What remains to write is the loop below.
"""

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgclip.runtime.progress import Progress
from lgclip.stages.executor import Executor, LocalExecutor, StageRun, Work, sum_of
from lgclip.stages.ray_cluster import ENDPOINTS, RayCluster, has_gpus, slots, software_versions
from lgclip.stages.ray_worker import Loaded, ShardResult, StageOrder, StageWorker
from lgclip.stages.sharding import MAX_TRIES, Failure, Job, ShardedStage, ShardQueue, poisoned_error
from lgclip.store import remote
from lgclip.store.cost_log import Tokens
from lgclip.store.remote import url_of

log = logging.getLogger(__name__)

_VARIABLES = ("LGCLIP_DATA", "LGCLIP_MAX_IMAGE_PIXELS", "LGCLIP_MAX_ASPECT_RATIO", *ENDPOINTS)
"""Environment variables that can change a result; workers have the environment of their machine."""

_IN_FLIGHT = 2
"""Shards per worker: it computes one, and the next is there when it has finished."""

_POLL_SECONDS = 1.0
"""Time between two looks at the cluster's machines."""

_WAIT_SECONDS = 60.0
"""Time without any worker after which the wait is reported."""

_FINISH_SECONDS = 60.0
"""Time in which a worker must close what is open in the store."""


class RayExecutor(Executor):
    """Computes the stages with a model in shards, by workers of a Ray cluster.

    Prompts of a server and of templates, and the evaluation, stay in the run's own process.

    Args:
        accelerator: `auto` uses the cluster's GPUs if it has any, `cpu` none; `gpu` waits for one, which an autoscaler
            provides.
        shard: Maximum number of items per shard; a forward pass may be larger.
        cpus: CPUs of a worker; at least as many as it has processes that decode images.
        gpus: GPUs of a worker, where the cluster has any.
        actors: Number of workers, which an autoscaler provides; null for as many as the cluster has room for, now and
            later.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        shard: int = 512,
        cpus: float = 1,
        gpus: float = 1,
        actors: int | None = None,
    ) -> None:
        for name, value, least in (("shard", shard, 1), ("cpus", cpus, 0), ("gpus", gpus, 0), ("actors", actors, 1)):
            if value is not None and value < least:
                raise ValueError(f"executor.{name}={value}: it must be at least {least}")
        self._accelerator = accelerator
        self._shard = shard
        self._cpus = cpus
        self._gpus = gpus
        self._actors = actors
        self._cluster = RayCluster()
        self._on_gpus = False
        self._store_url = ""

    def prepare(self, store: Path) -> None:
        """Connects to the cluster, or starts Ray here, and checks every machine.

        Args:
            store: The store's folder.

        Raises:
            ValueError: If there is no cluster, or it does not fit.
        """
        self._connect()
        self._store_url = url_of(store)
        self._cluster.check_machines(store)
        if self._actors is None and not slots(*self._resources()):
            raise ValueError(
                f"executor=ray: no machine of the cluster has {self._cpus:g} CPUs"
                + (f" and {self._gpus:g} GPUs" if self._on_gpus else "")
                + "; ask for fewer by executor.cpus and executor.gpus"
            )

    def close(self) -> None:
        """Disconnects, and ends Ray if `prepare` has started it."""
        self._cluster.close()

    def compute(self, run: StageRun, work: Work) -> None:
        """Computes the missing items of a stage on the cluster; in this process if it takes no device.

        Args:
            run: The stage.
            work: Is updated.

        Raises:
            ValueError: If the model cannot be loaded, or items fail on every worker.
        """
        stage = run.stage
        if not isinstance(stage, ShardedStage) or not stage.is_sharded:
            LocalExecutor().compute(run, work)
            return
        # A second run of the same process: the first has disconnected.
        if not self._cluster.is_connected:
            self._connect()
        device = "cuda" if self._on_gpus else "cpu"
        missing = stage.missing_by_loader()
        groups = [stage.group_size(loader, device) for loader in range(len(missing))]
        queue = ShardQueue(missing, groups, self._shard)
        progress = Progress(run.title, queue.waiting, stage.unit)
        try:
            _Dealer(run, work, queue, self._order(run, device), self, progress).run()
        finally:
            progress.close()
        # What the workers have uploaded was not there when the object store was listed last.
        remote.expire(run.store)
        if queue.poisoned:
            raise ValueError(poisoned_error(run.title, stage, queue.poisoned, queue.waiting))
        stage.finish_shards(run.trainer)

    def _order(self, run: StageRun, device: str) -> StageOrder:
        return StageOrder(
            run.stage,
            run.datamodule,
            device,
            max(1, int(self._cpus)),
            run.stage.content_keys(),
            software_versions(),
            {name: os.environ[name] for name in _VARIABLES if name in os.environ},
            self._store_url,
        )

    def _connect(self) -> None:
        self._cluster.connect()
        # Decided once: a pass has another size on a GPU, so workers of one stage are all of one kind.
        wants = self._accelerator in ("gpu", "cuda") or (self._accelerator == "auto" and has_gpus())
        self._on_gpus = wants and self._gpus > 0

    def _resources(self) -> tuple[float, float]:
        """Returns the CPUs and GPUs of a worker."""
        return self._cpus, self._gpus if self._on_gpus else 0

    def target_workers(self) -> int:
        """Returns the number of workers that the cluster should have now."""
        if self._actors is not None:
            return self._actors
        return slots(*self._resources())

    def worker_class(self) -> Any:
        """Returns the class of the actors, with its resources."""
        import ray

        cpus, gpus = self._resources()
        # Ray restarts and repeats nothing by itself: a shard of a lost actor is dealt to another one.
        return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(StageWorker)


@dataclass(eq=False)
class _Worker:
    """Holds an actor.

    Attributes:
        number: Its number; that of a lost one is not used again.
        actor: Its handle.
        loading: Reference of the result of loading the model; None once that is there.
        jobs: Its shards in order, the first of which it computes, with the references of their results.
        failures: How many shards have failed on it in a row.
    """

    number: int
    actor: Any
    loading: Any
    jobs: deque[tuple[Any, Job]] = field(default_factory=deque)
    failures: int = 0

    @property
    def awaited(self) -> list[Any]:
        """Returns the reference that is expected next."""
        if self.loading is not None:
            return [self.loading]
        return [reference for reference, _ in self.jobs][:1]


class _Dealer:
    """Deals the shards of one stage to workers, and collects what they report."""

    def __init__(
        self, run: StageRun, work: Work, queue: ShardQueue, order: StageOrder, executor: RayExecutor, progress: Progress
    ) -> None:
        self._run = run
        self._work = work
        self._queue = queue
        self._order = order
        self._executor = executor
        self._progress = progress
        self._workers: list[_Worker] = []
        self._next_number = 0
        self._first: int | None = None
        self._load_failures = 0
        self._has_started = False
        self._tokens: list[Tokens | None] = []
        self._seconds: dict[int, float] = {}
        self._last_poll = 0.0

    def run(self) -> None:
        """Returns when every shard is computed or given up.

        Raises:
            ValueError: If the model cannot be loaded.
        """
        import ray

        reference = ray.put(self._order)
        self._work.devices = 0
        waiting_since = time.monotonic()
        try:
            while self._has_work():
                self._add_workers(reference)
                self._deal()
                self._collect()
                if self._is_ready():
                    waiting_since = time.monotonic()
                elif time.monotonic() - waiting_since > _WAIT_SECONDS:
                    waiting_since = time.monotonic()
                    log.warning("%s: waiting for a machine; `ray status` shows what is in use", self._run.title)
            self._finish()
        finally:
            # Also after an error or a signal: an actor would keep its device.
            for worker in self._workers:
                ray.kill(worker.actor)
            self._work.tokens = sum_of(self._tokens)
            self._work.spent = self._seconds

    def _has_work(self) -> bool:
        if self._queue.is_given_up:
            return False
        return bool(self._queue.waiting or any(worker.jobs for worker in self._workers))

    def _is_ready(self) -> bool:
        return any(worker.loading is None for worker in self._workers)

    def _add_workers(self, order: Any) -> None:
        """Starts workers where machines have joined, or workers were lost."""
        now = time.monotonic()
        if now - self._last_poll < _POLL_SECONDS:
            return
        self._last_poll = now
        busy = sum(bool(worker.jobs) for worker in self._workers)
        target = min(self._executor.target_workers(), busy + self._queue.shards_left())
        for _ in range(target - len(self._workers)):
            number = self._next_number
            self._next_number += 1
            is_first = self._first is None
            if is_first:
                self._first = number
            actor = self._executor.worker_class().remote(order, is_first=is_first)
            self._workers.append(_Worker(number, actor, actor.load.remote()))

    def _deal(self) -> None:
        """Gives each worker its shards; a second one only where all others have one."""
        # One that waits for a machine may wait for ever, so no shard waits for it.
        ready = [worker for worker in self._workers if worker.loading is None]
        numbers = [worker.number for worker in ready]
        for most in range(1, _IN_FLIGHT + 1):
            for worker in ready:
                if len(worker.jobs) >= most:
                    continue
                job = self._queue.take(worker.number, numbers)
                if job is not None:
                    reference = worker.actor.compute.remote(job.shard, is_repeated=job.is_repeated)
                    worker.jobs.append((reference, job))

    def _collect(self) -> None:
        """Waits for reports, for a moment at most, and reads them."""
        import ray
        from ray.exceptions import RayError

        awaited = {reference: worker for worker in self._workers for reference in worker.awaited}
        if not awaited:
            time.sleep(_POLL_SECONDS / 10)
            return
        ready, _ = ray.wait(list(awaited), num_returns=1, timeout=_POLL_SECONDS)
        # All that is there, and not one at a time.
        if ready:
            ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        for reference in ready:
            worker = awaited[reference]
            try:
                report = ray.get(reference)
            except RayError as error:
                self._lose(worker, error)
                continue
            if isinstance(report, Loaded):
                self._read_loaded(worker, report)
            else:
                self._read_result(worker, report)

    def _read_loaded(self, worker: _Worker, report: Loaded) -> None:
        _repeat_messages(report.messages)
        worker.loading = None
        if report.failure is None:
            self._work.device = report.device or self._work.device
            self._load_failures = 0
            self._work.devices = max(self._work.devices, sum(w.loading is None for w in self._workers))
            if not self._has_started:
                self._has_started = True
                self._run.mark_start()
            return
        self._load_failures += 1
        # What is written for the user is the same everywhere; anything else may be a fault of one machine.
        if report.failure.is_explained or self._load_failures >= MAX_TRIES:
            error = ValueError if report.failure.is_explained else RuntimeError
            raise error(str(report.failure)) from RuntimeError(report.failure.trace)
        self._remove(worker)

    def _read_result(self, worker: _Worker, report: ShardResult) -> None:
        _, job = worker.jobs.popleft()
        _repeat_messages(report.messages)
        loader = job.shard.loader
        self._seconds[loader] = self._seconds.get(loader, 0.0) + report.seconds
        self._tokens.append(report.tokens)
        if report.peak_memory is not None and report.peak_memory > (self._work.peak_memory or 0):
            self._work.peak_memory = report.peak_memory
            self._work.peak_from = report.peak_from
        if report.failure is None:
            worker.failures = 0
            self._progress.update(len(job.shard.places))
            return
        log.debug("%s: a shard has failed: %s", self._run.title, report.failure.trace)
        self._queue.fail(job, worker.number, report.failure)
        worker.failures += 1
        # A GPU may be unusable after an error, until its process ends.
        if worker.failures >= 2 and not report.failure.is_explained:
            self._remove(worker)

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Deals the shards of a lost worker again."""
        lines = str(error).strip().splitlines()
        # The last line of a traceback says what is wrong, such as a module that is not installed there.
        reason = lines[-1] if "creation task" in lines[0] else lines[0]
        log.warning("%s: a worker was lost; its shard is computed again (%s)", self._run.title, reason)
        # What it had generated of its shard is stored, and its tokens are not known.
        if worker.jobs:
            self._tokens.append(None)
            _, job = worker.jobs.popleft()
            self._queue.lose(job, worker.number, Failure(type(error).__name__, f"its worker was lost ({reason})"))
        else:
            self._load_failures += 1
            if self._load_failures >= MAX_TRIES:
                raise ValueError(
                    f"{self._run.title}: {MAX_TRIES} workers were lost while they loaded the model ({reason}); it may "
                    "need more memory, see Ray's logs in /tmp/ray/session_latest/logs of the machine"
                ) from error
        self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        """Ends a worker, and takes back the shards that it has not begun."""
        import ray

        while worker.jobs:
            self._queue.put_back(worker.jobs.pop()[1])
        self._workers.remove(worker)
        if self._first == worker.number and not self._has_started:
            self._first = None
        ray.kill(worker.actor)
        self._last_poll = 0.0

    def _finish(self) -> None:
        """Lets the workers close what is open in the store."""
        import ray

        references = [worker.actor.finish.remote() for worker in self._workers if worker.loading is None]
        if not references:
            return
        # One that is lost now has stored everything; a reader finds images by the headers of its shard.
        ray.wait(references, num_returns=len(references), timeout=_FINISH_SECONDS)


def _repeat_messages(messages: list[tuple[int, str]]) -> None:
    """Logs what a worker has logged."""
    for level, message in messages:
        log.log(level, "%s", message)
