"""Starts Ray clusters on 127.0.0.1, and generates images by a diffuser that logs each of its calls."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from lightning import Trainer

from lgclip.diffuser.base import GeneratedBatch, ImageGenerator, image_prompts, noise_seed
from lgclip.stages.executor import Executor
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.types import Prompt, TargetClass

CLASSES = [TargetClass(index, name) for index, name in enumerate(("blue moon", "green ring", "red star"))]
NODE_SECONDS = 90.0
"""Time in which a machine must join, and a process there import torch."""

SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on 127.0.0.1 alone
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers read the tests' own diffuser from this module; pytest's `pythonpath` is that of its process alone.
    "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
}


class Call(NamedTuple):
    """Describes the generation of one image: the process, its machine, and the image's class and repeat."""

    process: int
    node: str
    class_index: int
    repeat: int


@dataclass(frozen=True)
class LoggedDiffuser(ImageGenerator):
    """Generates noise, one image at a time, and logs each image to a file; may wait there for another machine."""

    key_name: ClassVar[str] = "LoggedDiffuser"
    needs_prompts: ClassVar[bool] = True

    log: str = field(metadata=NOT_AN_INPUT)
    seconds: float = field(default=0.0, metadata=NOT_AN_INPUT)
    poison: tuple[tuple[str, int], ...] = field(default=(), metadata=NOT_AN_INPUT)
    until_nodes: int = field(default=1, metadata=NOT_AN_INPUT)
    batch_size: int | str = field(default=4, metadata=NOT_AN_INPUT)
    size: int | None = 256
    retries: int = 0

    def inputs(self) -> dict[str, object]:
        return {"diffuser": self.key_name}

    def load(self, device: torch.device) -> "_LoggedPipeline":
        return _LoggedPipeline(self)


class _LoggedPipeline:
    def __init__(self, diffuser: LoggedDiffuser) -> None:
        self._diffuser = diffuser

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        # Copies that fill up a pass are no images.
        for prompt in dict.fromkeys(prompts):
            line = f"{os.getpid()} {_node()} {prompt.class_index} {prompt.repeat}\n"
            with Path(self._diffuser.log).open("ab", buffering=0) as file:
                file.write(line.encode())
            if (prompt.target_class.name, prompt.repeat) in self._diffuser.poison:
                raise RuntimeError("boom")
            time.sleep(self._diffuser.seconds)
            self._wait()
        pixels = [np.random.default_rng(noise_seed(prompt, seed)).integers(256, size=(8, 8, 3)) for prompt in prompts]
        return GeneratedBatch(np.stack(pixels).astype(np.uint8), [None] * len(prompts))

    def _wait(self) -> None:
        """Waits with the twentieth image for as many machines as the test has."""
        deadline = time.monotonic() + NODE_SECONDS
        while time.monotonic() < deadline:
            calls = read_calls(Path(self._diffuser.log))
            if len(calls) < 20 or len({call.node for call in calls}) >= self._diffuser.until_nodes:
                return
            time.sleep(0.1)

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> Any:
        return self.generate(prompts, seed, [0] * len(prompts)).pixels


def _node() -> str:
    try:
        import ray
    except ImportError:
        return "none"
    if not ray.is_initialized():
        return "none"
    return ray.get_runtime_context().get_node_id()


def read_calls(log: Path) -> list[Call]:
    """Returns the logged calls."""
    if not log.exists():
        return []
    rows = [line.split() for line in log.read_text().splitlines()]
    return [Call(int(process), node, int(index), int(repeat)) for process, node, index, repeat in rows]


def image_stage(store: Path, log: Path, per_class: int, **settings: Any) -> ImageGenerationStage:
    """Returns a stage that generates images of three classes."""
    texts = [[f"a photo of a {target_class.name}"] for target_class in CLASSES]
    prompts = image_prompts(CLASSES, texts, 1, per_class)
    return ImageGenerationStage(LoggedDiffuser(str(log), **settings), store, CLASSES, prompts, seed=0)


def make_stages(store: Path, executor: Executor | None = None) -> Stages:
    """Returns stages on a CPU."""
    quiet()
    store.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()],
        enable_model_summary=False,
    )  # fmt: skip
    return Stages(trainer, [] if executor is None else [partial(executor.prepare, store)], executor)


def generate(stage: ImageGenerationStage, store: Path, executor: Executor | None = None) -> Stages:
    """Runs the stage, and closes the executor."""
    with make_stages(store, executor) as stages:
        stages.complete("images", stage, len(stage.prompts))
    return stages


@contextmanager
def ray_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables in the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class LocalCluster:
    """Holds a cluster of nodes with one CPU each, all of them on 127.0.0.1; the head computes nothing.

    A driver is connected to the head, so that any other node can be lost.
    """

    def __init__(self, nodes: int) -> None:
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        ray_constants.ENABLE_RAY_CLUSTER = False  # as SETTINGS say, if Ray was imported before
        self._cluster: Any = Cluster(head_node_args={**self._settings(), "num_cpus": 0}, initialize_head=True)
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()

    def _settings(self) -> dict[str, Any]:
        return {"node_ip_address": "127.0.0.1", "include_dashboard": False}

    @property
    def address(self) -> str:
        return self._cluster.address

    def add_node(self) -> str:
        """Starts a node, in any thread; returns its id."""
        # Only the main thread may set a handler of signals.
        with patch("ray._private.utils.set_sigterm_handler"):
            node = self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", wait=False)
        self.nodes.append(node)
        return node.node_id

    def kill_node(self, node_id: str) -> None:
        """Kills a node and everything on it by SIGKILL."""
        node = next(node for node in self.nodes if node.node_id == node_id)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def once_logged(log: Path, count: int, action: Callable[[list[Call]], None]) -> Iterator[None]:
    """Calls `action` in a thread as soon as so many calls are logged; its error is raised at the end of the block."""
    errors: list[BaseException] = []
    over = threading.Event()

    def watch() -> None:
        while len(read_calls(log)) < count:
            if over.wait(0.02):
                errors.append(AssertionError(f"fewer than {count} calls"))
                return
        try:
            action(read_calls(log))
        except BaseException as error:
            errors.append(error)
        # A node that this thread has started ends with it (PR_SET_PDEATHSIG).
        over.wait()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
