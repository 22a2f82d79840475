"""Computes shards of a stage in an actor of Ray; imports no Ray, so that it runs in any process."""

import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lgclip.runtime.devices import Peak, device_name
from lgclip.stages.ray_cluster import check_versions
from lgclip.stages.sharding import Failure, Shard, ShardedStage, ShardSource
from lgclip.store import remote
from lgclip.store.cost_log import Tokens
from lgclip.store.root import open_root


@dataclass(frozen=True)
class StageOrder:
    """Holds the inputs that every worker of a stage gets once.

    Attributes:
        stage: The stage, without its model.
        datamodule: Provides the stage's data; None if it does so itself.
        device: Type of the workers' device: `cpu` or `cuda`.
        threads: Number of threads of a worker on a CPU.
        keys: Keys of the stage's models in the run's own process.
        versions: Versions of the software there.
        environment: Environment variables that can change a result.
        store_url: URL of the store; empty for a folder that all machines share.
    """

    stage: ShardedStage
    datamodule: Any
    device: str
    threads: int
    keys: list[str]
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    store_url: str = ""


@dataclass(frozen=True)
class Loaded:
    """Reports a worker that has loaded its model, or why it has not.

    Attributes:
        device: Name of its device.
        failure: What went wrong; None if nothing did.
        messages: What it has logged: level and message.
    """

    device: str = ""
    failure: Failure | None = None
    messages: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardResult:
    """Reports a shard that a worker has computed, or why it has not. What it has computed is in the store.

    Attributes:
        seconds: Time that it took.
        tokens: Tokens of the language model; None without one, or if they are unknown.
        peak_memory: Peak memory in bytes; None if unknown.
        peak_from: Source of that value, see `StageStats`.
        failure: What went wrong; None if nothing did.
        messages: What it has logged: level and message.
    """

    seconds: float
    tokens: Tokens | None
    peak_memory: int | None
    peak_from: str | None
    failure: Failure | None
    messages: list[tuple[int, str]]


class _Strategy:
    """Holds the device of a worker, in place of a strategy of Lightning."""

    def __init__(self, device: torch.device) -> None:
        self.root_device = device

    def barrier(self) -> None:
        """Waits for no other process."""


class _WorkerTrainer:
    """Describes a single device, as a stage asks its trainer.

    Lightning's trainer loads the model in each `predict`, so it cannot run one shard after another.

    Args:
        device: The device.
        is_first: Whether this worker also does what is done once for all devices.
    """

    global_rank = 0
    world_size = 1

    def __init__(self, device: torch.device, *, is_first: bool) -> None:
        self.strategy = _Strategy(device)
        self.is_global_zero = is_first


class StageWorker:
    """Holds a stage with its model in memory, and computes one shard after another.

    Args:
        order: Work to compute.
        is_first: Whether it also does what is done once for all devices, such as measuring the encoder.
    """

    def __init__(self, order: StageOrder, *, is_first: bool) -> None:
        os.environ.update(order.environment)
        self._order = order
        self._stage = order.stage
        self._is_first = is_first
        self._device = torch.device(order.device)
        self._counts_tokens = False

    def load(self) -> Loaded:
        """Loads the model. An error is returned, not raised: not every exception can be sent."""
        with _captured() as messages:
            try:
                self._load()
            except Exception as error:
                return Loaded("", failure_of(error), messages)
        return Loaded(device_name(self._device), None, messages)

    def _load(self) -> None:
        order = self._order
        stage: Any = self._stage
        check_versions(order.versions)
        if self._device.type == "cpu":
            torch.set_num_threads(order.threads)
        # Weights of another file at the same path, or another precision by `auto`, would be stored under a key of the
        # run's own process.
        if self._stage.content_keys() != order.keys:
            raise ValueError(
                f"{os.uname().nodename}: a model there differs from that of the run's own process: another file of its "
                "weights, another commit, or another precision by precision=auto; make them equal, or set "
                "precision=fp32 or bf16"
            )
        trainer = _WorkerTrainer(self._device, is_first=self._is_first)
        stage.trainer = trainer
        if order.datamodule is not None:
            order.datamodule.trainer = trainer
        stage.to(self._device)
        stage.eval()
        if order.store_url:
            # A machine that has joined later than the others has no cache of the object store yet.
            open_root(order.store_url)
            self._stage.reread_store()
        with torch.inference_mode():
            stage.on_predict_start()
        self._counts_tokens = stage.tokens is not None

    def compute(self, shard: Shard, *, is_repeated: bool) -> ShardResult:
        """Computes a shard and stores the result.

        Args:
            shard: The shard.
            is_repeated: Whether another worker may have stored a part of it.
        """
        stage: Any = self._stage
        if self._counts_tokens:
            stage.tokens = Tokens()
        failure: Failure | None = None
        start = time.perf_counter()
        with _captured() as messages, Peak(self._device) as peak:
            try:
                if is_repeated:
                    self._stage.reread_store()
                with torch.inference_mode():
                    self._compute(shard)
                # A machine that is lost later has lost nothing of this shard.
                remote.push_pending()
            except Exception as error:
                failure = failure_of(error)
                # What waits for a complete pass belongs to a shard that is computed again.
                self._stage.drop_queue()
        seconds = time.perf_counter() - start
        return ShardResult(seconds, stage.tokens, peak.bytes, peak.source, failure, messages)

    def _compute(self, shard: Shard) -> None:
        stage: Any = self._stage
        source: ShardSource = self._order.datamodule or stage
        for index, batch in enumerate(source.shard_loader(shard.loader, shard.places)):
            moved = source.transfer_batch_to_device(batch, self._device, shard.loader)
            # Only a stage of several loaders takes their index, as in Lightning.
            if shard.loader:
                stage.predict_step(moved, index, shard.loader)
            else:
                stage.predict_step(moved, index)
        stage.on_predict_epoch_end()

    def finish(self) -> None:
        """Releases the model, and closes what is open in the store."""
        self._stage.on_predict_end()
        remote.push_pending()


def failure_of(error: BaseException) -> Failure:
    """Returns the description of an exception."""
    trace = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, str(error), trace, isinstance(error, ValueError))


@contextmanager
def _captured() -> Iterator[list[tuple[int, str]]]:
    """Collects what the package logs, to be logged by the run's own process."""
    messages: list[tuple[int, str]] = []
    handler = _Collector(messages)
    logger = logging.getLogger("lgclip")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, messages: list[tuple[int, str]]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append((record.levelno, record.getMessage()))
