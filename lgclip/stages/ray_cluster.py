"""Connects to a Ray cluster, or starts Ray on this machine, and checks that every machine fits the run."""

import importlib.metadata
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig

from lgclip.runtime import versions
from lgclip.runtime.signals import restore_handlers
from lgclip.store.location import ENDPOINT_VARIABLES
from lgclip.store.remote import url_of
from lgclip.store.root import check_writable, open_root

log = logging.getLogger(__name__)

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the cluster's address, as Ray reads it."""

ENDPOINTS = tuple(name for names in ENDPOINT_VARIABLES.values() for name in names)
"""Environment variables that name a server of an object store."""

_CONNECT_SECONDS = 10.0
"""Time in which the port of a cluster must answer."""

_PROBE_SECONDS = 120.0
"""Time in which every machine must start a Python process."""

_ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable that lets Ray, with 0, listen on 127.0.0.1 alone, as it does on Windows and macOS."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of coming versions, which warn of it
}


class RayCluster:
    """Holds the connection to a cluster.

    A connection that the process had before stays when this one is closed.
    """

    def __init__(self) -> None:
        self._connected = False

    @property
    def is_connected(self) -> bool:
        """Returns whether there is a connection."""
        import ray

        return ray.is_initialized()

    def connect(self) -> None:
        """Connects to the cluster at `RAY_ADDRESS`, or else to one on this machine, or else starts Ray here.

        Raises:
            ValueError: If there is no cluster at the address, or it does not fit.
        """
        address = os.environ.get(ADDRESS, "")
        # Read when Ray is imported. A variable that the user has set stays.
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        # A cluster that this process uses already, such as that of an earlier job of a sweep.
        if ray.is_initialized():
            return
        if address.startswith("ray://"):
            raise ValueError(
                f"{ADDRESS}={address}: a run is a driver of the cluster and no Ray Client; start it on a machine of "
                f"the cluster, as `ray job submit` does, with {ADDRESS}=HOST:6379"
            )
        try:
            if address not in ("", "local"):
                _check_port(address)
                self._init(address)
            elif not (address == "" and self._joined()):
                self._start()
        finally:
            # Ray sets a handler of its own for SIGTERM.
            restore_handlers()

    def _joined(self) -> bool:
        """Connects to a cluster that runs on this machine; returns whether there is one."""
        try:
            self._init("auto")
        except ConnectionError:
            return False
        return True

    def _start(self) -> None:
        with _environment(_ON_LOOPBACK, "0"), _loopback():
            self._init("local", include_dashboard=False)

    def _init(self, address: str, **arguments: Any) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            # The output of workers stays in Ray's own logs: what concerns the user comes back with a shard.
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **arguments)
        except ConnectionError as error:
            if address == "auto":
                raise
            raise _refused(address, error) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise _refused(address, error) from error
        _keep_stdout_clean()
        self._connected = True

    def close(self) -> None:
        """Disconnects; ends what `connect` has started."""
        if not self._connected:
            return
        import ray

        self._connected = False
        ray.shutdown()
        restore_handlers()

    def check_machines(self, store: Path) -> None:
        """Checks that every machine has the same software and sees the store.

        Args:
            store: The store's folder.

        Raises:
            ValueError: If one does not.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task: Any = ray.remote(probe)
        url = url_of(store)
        with NamedTemporaryFile(dir=store, prefix=".ray-") as marker:
            visible_path = str(store) if url else marker.name
            endpoints = {name: os.environ[name] for name in ENDPOINTS if name in os.environ}
            probes: dict[Any, str] = {}
            for node in alive_nodes():
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = task.options(num_cpus=0, scheduling_strategy=where, max_retries=0)
                reference = options.remote(software_versions(), visible_path, url, endpoints)
                probes[reference] = node["NodeManagerAddress"]
            finished, open_probes = ray.wait(list(probes), num_returns=len(probes), timeout=_PROBE_SECONDS)
            for reference in finished:
                _check_probe(reference, probes[reference], store)
        if open_probes:
            late = ", ".join(probes[reference] for reference in open_probes)
            raise ValueError(f"executor=ray: no answer from {late} within {_PROBE_SECONDS:.0f} s; look at `ray status`")


def check_config(cfg: DictConfig) -> None:
    """Checks that Ray is installed and that the run itself has one process; imports neither Ray nor torch.

    Args:
        cfg: The run's config.

    Raises:
        ValueError: If Ray is not installed, or the run has several processes.
    """
    check_installed("executor=ray", "executor=local")
    trainer = cfg.trainer
    distributed = {
        "trainer.strategy": (trainer.get("strategy", "auto"), "auto"),
        "trainer.num_nodes": (trainer.get("num_nodes", 1), 1),
        "trainer.devices": (trainer.get("devices", "auto"), "auto"),
    }
    for name, (value, default) in distributed.items():
        if value not in (default, 1, "1"):
            raise ValueError(
                f"executor=ray and {name}={value}: Ray distributes the stages, and the run itself has one process; "
                "leave trainer=auto trainer.devices=auto, or use executor=local"
            )


def check_installed(option: str, alternative: str) -> None:
    """Checks that Ray is installed, without importing it.

    Args:
        option: Option that requests Ray, for the error.
        alternative: Option that needs no Ray.

    Raises:
        ValueError: If it is not.
    """
    if find_spec("ray") is None:
        raise ValueError(f"{option}: Ray is not installed: pip install 'lgclip[ray]', or use {alternative}")


def alive_nodes() -> list[dict[str, Any]]:
    """Returns the cluster's machines."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def slots(cpus: float, gpus: float) -> int:
    """Returns how many workers fit on the cluster.

    Args:
        cpus: CPUs of a worker.
        gpus: GPUs of a worker; 0 for none.
    """
    total = 0
    for node in alive_nodes():
        resources = node["Resources"]
        fitting = [resources.get("CPU", 0.0) // cpus] if cpus else []
        if gpus:
            fitting.append(resources.get("GPU", 0.0) // gpus)
        total += int(min(fitting, default=0))
    return total


def has_gpus() -> bool:
    """Returns whether a machine of the cluster has a GPU."""
    return any(node["Resources"].get("GPU", 0) for node in alive_nodes())


def software_versions() -> dict[str, str]:
    """Returns the versions that the content of the store depends on."""
    numbers = [versions.STORE_SCHEMA, versions.CODE_VERSION, versions.REPLY_PARSER]
    return {
        "lgclip": f"{import_module('lgclip').__version__} ({'.'.join(map(str, numbers))})",
        # Without the build, such as `+cpu`: the machine that starts a run needs no GPU.
        "torch": importlib.metadata.version("torch").partition("+")[0],
    }


def check_versions(expected: Mapping[str, str]) -> None:
    """Checks that this machine has the software of the run's own process.

    Args:
        expected: The versions there.

    Raises:
        ValueError: If it has other versions.
    """
    actual = software_versions()
    differences = [
        f"{name} {actual[name]} and not {version}" for name, version in expected.items() if actual[name] != version
    ]
    if differences:
        raise ValueError(
            f"{os.uname().nodename} has {', '.join(differences)}; install the versions of the machine that starts the "
            "run"
        )


def probe(
    expected: Mapping[str, str], marker: str, url: str = "", environment: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Checks a machine of the cluster; runs there.

    Args:
        expected: Versions of the run's own process.
        marker: A file in the store, or the folder in which the run's own process caches the object store.
        url: URL of the store; empty for a folder.
        environment: Environment variables that name the server of an object store.

    Returns:
        What is wrong; empty if nothing is.
    """
    try:
        check_versions(expected)
    except ValueError as error:
        return str(error)
    if url:
        os.environ.update(environment)
        return _problem_of_object_store(url, Path(marker))
    if not Path(marker).exists():
        return f"{os.uname().nodename} does not see the store; name a folder that all machines share by paths.store=DIR"
    return ""


def _problem_of_object_store(url: str, cache: Path) -> str:
    """Returns the reason why a machine cannot use an object store; empty if it can."""
    try:
        store = open_root(url)
        check_writable(store)
    except ValueError as error:
        return f"{os.uname().nodename}: {error}"
    # The stages are sent with the paths of the run's own process.
    if store != cache:
        return (
            f"{os.uname().nodename} caches {url} in {store}, and the run's own process in {cache}; set XDG_CACHE_HOME "
            "to the same folder on all machines"
        )
    return ""


def _check_probe(reference: Any, address: str, store: Path) -> None:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        problem = ray.get(reference)
    except RayTaskError as error:
        # Such as no lgclip there: the task cannot even be read.
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"executor=ray: {address} cannot run lgclip ({reason}); install the same version there"
        ) from error
    except RayError as error:
        # A machine that is lost is no reason to stop: the others do its work.
        log.debug("%s: %s", address, error)
        return
    if problem:
        raise ValueError(f"executor=ray, store {store}: {problem}")


def _check_port(address: str) -> None:
    """Looks for a cluster's port first: Ray itself tries for half a minute."""
    host, _, port = address.rpartition(":")
    # Such as `auto`, which Ray resolves.
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _refused(address, error) from error


def _refused(address: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    if "ersion mismatch" in reason:
        return ValueError(
            f"{ADDRESS}={address}: the cluster has another version of Ray or Python ({reason[:300]}); install the same "
            "versions on both sides"
        )
    if address == "local":
        return ValueError(f"executor=ray: Ray does not start on this machine ({reason[:300]}); use executor=local")
    return ValueError(
        f"executor=ray: no cluster at {ADDRESS}={address} ({type(error).__name__}: {reason[:300]}); start one by `ray "
        f"start --head`, correct the address, or set {ADDRESS}=local to use this machine alone"
    )


def _keep_stdout_clean() -> None:
    """Keeps Ray from printing the death of a worker to stdout, where a run prints its result; the run logs it."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *arguments, **settings: log.debug("%s", arguments)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable in the block, unless it is set."""
    is_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not is_set:
            del os.environ[name]


@contextmanager
def _loopback() -> Iterator[None]:
    """Lets a Ray that is imported already listen on 127.0.0.1 alone, in the block."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[_ON_LOOPBACK] != "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
