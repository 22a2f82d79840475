"""Restricts what a config may instantiate: a `_target_` is called only if the object it resolves to is allowed.

Hydra's `instantiate` calls whatever a config names, and a deny list is never complete. Here a name that is not on the
allow list is not even imported, and one that is on it is identified by the module and the qualified name of the
object itself: `lgclip.cli.errors.os.system` is `posix.system`.

Entries under `hydra` (callbacks, launchers, sweepers, logging) are built by Hydra before a run starts, and are not
checked here.
"""

import copy
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from lgclip.runtime.api_keys import check_addresses
from lgclip.runtime.value_types import check_names, check_types

ENVIRONMENT = "LGCLIP_ALLOW"
"""Names packages whose classes and functions a config may name too, as in `mypackage,other.module`."""

_AT_START = os.environ.get(ENVIRONMENT, "")  # `hydra.job.env_set`, which is a config, is set later than this is read

PLACES = (
    "lgclip", "lightning.Trainer", "lightning.pytorch.Trainer", "lightning.pytorch.trainer",
    "lightning.pytorch.loggers", "lightning.pytorch.strategies", "lightning.pytorch.profilers",
    "lightning.pytorch.plugins.environments", "lightning.fabric.plugins.environments",
)  # fmt: skip
"""Packages in which a name is resolved at all: importing a module runs it."""

PARTS = frozenset({
    "lgclip.datasets.base.Dataset", "lgclip.prompts.base.PromptGenerator", "lgclip.diffuser.base.ImageSource",
    "lgclip.encoder.base.Encoder", "lgclip.encoder.scales.Scales", "lgclip.methods.base.Classifier",
    "lgclip.prompts.text_side.TextSide", "lgclip.methods.scoring.ScoringRule", "lgclip.methods.rejection.Rejection",
    "lgclip.methods.alignment.Alignment", "lgclip.methods.transduction.base.Transduction",
    "lgclip.evaluation.pools.PoolComparison", "lgclip.stages.executor.Executor",
    "lgclip.methods.selection.Selection", "lgclip.methods.calibration.LeaveOneOut", "lgclip.tiny.recipe.Recipe",
    "lgclip.tiny.corpus.Corpus", "lgclip.training.student.config.Student", "lgclip.training.lora.config.LoraTuning",
    "lgclip.training.task.TrainingConfig", "lgclip.training.prompt_tuning.config.PromptTuningConfig",
    "lgclip.training.prompt_tuning.paradigms.Paradigm",
    "lightning.pytorch.trainer.trainer.Trainer", "lightning.fabric.loggers.logger.Logger",
    "lightning.pytorch.strategies.strategy.Strategy", "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.fabric.plugins.environments.cluster_environment.ClusterEnvironment",
})  # fmt: skip
"""Allowed targets: these classes, and those of lgclip and Lightning that derive from them."""

_LOGGER = "lightning.fabric.loggers.logger.Logger"
_PUBLIC = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_LISTS = "_execution_whitelist_" in inspect.signature(instantiate).parameters  # Hydra 1.4 needs this too


class TargetError(ValueError):
    """Reports that a config names a target that is not allowed or does not exist."""


def build(config: Any, **arguments: Any) -> Any:
    """Builds what a config describes, as `hydra.utils.instantiate` does, if all of its targets are allowed.

    Args:
        config: A node of the config; None builds nothing.
        arguments: Further arguments of `instantiate`: values that the config does not hold, `_convert_`, `_partial_`.

    Returns:
        The return value of the target; None for None.

    Raises:
        TargetError: If a target at any depth is not allowed. Nothing has been called then.
        ValueError: If a value is no parameter of its target, or of another type.
    """
    if config is None:
        return None
    names = check(config, **arguments)
    options: dict[str, Any] = {}
    if _LISTS:
        options["_execution_whitelist_"] = tuple(sorted(set(names)))
    return instantiate(config, **arguments, **options)


def check(config: Any, **arguments: Any) -> list[str]:
    """Checks the targets of a config and the types of their values; builds nothing.

    Args:
        config: A node of the config.
        arguments: Values that the config does not hold.

    Returns:
        The names of the targets.

    Raises:
        TargetError: If a target at any depth is not allowed.
        ValueError: If a value is no parameter of its target, or of another type.
    """
    if not isinstance(config, DictConfig | ListConfig):
        raise TargetError(f"a part of the config is {config!r}: it must be a mapping with _target_")
    # All targets are checked before the first is called: `instantiate` builds from the inside out, so an allowed part
    # would otherwise be built before a forbidden one around it is seen.
    targets = [(key, name, node, _checked(key, name)) for key, name, node in _targets(_as_built(config, arguments))]
    for key, _, node, target in targets:
        place = key.removesuffix("_target_").removesuffix(".")
        # The clients of loggers send a key of the environment to the address that their config names.
        if isinstance(target, type) and any(_qualified_name(base) == _LOGGER for base in target.__mro__):
            check_addresses(place, node)
        check_names(place, node, target)
        # Lightning checks its own values, and annotations of other packages may be narrower than what they accept.
        if _within(_qualified_name(target), ("lgclip",)):
            check_types(place, node, target)
    return [name for _, name, _, _ in targets]


def target_of(config: DictConfig) -> Any:
    """Returns the top-level target of a config without calling it, if it is allowed.

    Raises:
        TargetError: If it is not allowed.
    """
    return _checked(config._get_full_key("_target_"), config["_target_"])


def _as_built(config: DictConfig | ListConfig, arguments: dict[str, Any]) -> Any:
    """Returns the config as `instantiate` will see it: with additional arguments, and interpolations resolved."""
    # A copy, because resolving replaces interpolations by their values, and a config is recorded as it was written.
    node: Any = copy.deepcopy(config)
    node._set_flag(flags=["allow_objects", "struct", "readonly"], values=[True, False, False])
    # A copied node has no parent, and interpolations to the rest of the config go by way of it.
    node._set_parent(config._get_parent())
    if arguments and isinstance(node, DictConfig):
        node = OmegaConf.merge(node, arguments)
    OmegaConf.resolve(node)
    return node


def _targets(config: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields every target at or below a node: its path in the config, its name and the node that it builds.

    Values are read one by one, as `instantiate` reads them: a value that resolves to another interpolation is
    resolved again there, and therefore here too.
    """
    node: Any = config
    # `oc.decode` returns plain dictionaries.
    if isinstance(node, dict | list):
        node = OmegaConf.create(node, flags={"allow_objects": True})
    if not OmegaConf.is_config(node):
        return
    keys: Iterable[Any] = list(node) if OmegaConf.is_dict(node) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key):  # `instantiate` says which value it is
            continue
        if key == "_target_":
            yield node._get_full_key(key), node[key], node
        yield from _targets(node[key])


def _checked(key: str, name: Any) -> Any:
    """Returns the object that a target names.

    Raises:
        TargetError: If it is not allowed or does not exist.
    """
    entry = f"{key}={name}"
    # Nothing that begins with an underscore: `__class__` and its kind lead from any object to any other.
    if not (isinstance(name, str) and _PUBLIC.fullmatch(name)):
        raise TargetError(f"{entry} is not a public dotted name, as in lgclip.datasets.folder.Folder")
    packages = _allowed_packages()
    # Before the import, which runs the module.
    if not _within(name, (*PLACES, *packages)):
        raise _refused(entry)
    try:
        target = _located(entry, name, packages)
    except (ImportError, AttributeError) as error:
        raise TargetError(f"{entry} is not importable: {error}") from error
    # By what the object says of itself and not by the name that led to it: a module of lgclip also has the names of
    # what it imports, such as `os`.
    identity = _qualified_name(target)
    is_part = (
        isinstance(target, type)
        and _within(identity, PLACES)
        and any(_qualified_name(base) in PARTS for base in target.__mro__)
    )
    if not is_part and not (callable(target) and _within(identity, packages)):
        reason = ""
        if identity != name:
            reason = f"it is {identity or repr(target)}"
        raise _refused(entry, reason)
    return target


def _located(target: str, name: str, packages: tuple[str, ...]) -> Any:
    """Returns the object of a dotted name, resolved as in Hydra, but not through a module of another package."""
    place, *attributes = name.split(".")
    node: Any = import_module(place)
    for part in attributes:
        place = f"{place}.{part}"
        try:
            node = getattr(node, part)
        except AttributeError:
            # A submodule becomes an attribute of its package only once it is imported.
            if not isinstance(node, ModuleType):
                raise
            node = import_module(place)
        # A step into another package by way of an import: what lies behind it is not on the list.
        if isinstance(node, ModuleType) and node.__name__ != place and not _within(node.__name__, (*PLACES, *packages)):
            raise _refused(target, f"{place} is the module {node.__name__}")
    return node


def _qualified_name(obj: Any) -> str:
    """Returns the module and the qualified name of an object; empty if it has none."""
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return ""
    return f"{module}.{name}"


def _within(name: str, places: Iterable[str]) -> bool:
    # With the dot, so that a package `lgclip_other` is not within `lgclip`.
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _allowed_packages() -> tuple[str, ...]:
    """Returns the packages that the environment variable allows.

    Raises:
        TargetError: If an entry is not a package name, or the environment has changed since the start.
    """
    if os.environ.get(ENVIRONMENT, "") != _AT_START:
        raise TargetError(f"{ENVIRONMENT} has changed since the start: set it in the shell, not in hydra.job.env_set")
    names = tuple(name.strip() for name in _AT_START.split(",") if name.strip())
    for name in names:
        if not _PUBLIC.fullmatch(name):
            raise TargetError(f"{ENVIRONMENT}: {name!r} is no package; give names as in mypackage,other.module")
    return names


def _refused(target: str, reason: str = "") -> TargetError:
    if reason:
        reason = f", {reason}"
    return TargetError(
        f"{target} is not allowed{reason}: a config may name lgclip's own parts and Lightning's "
        "Trainer, loggers, strategies, profilers and cluster environments. If it is of a package that you trust, name "
        f"that package in the environment: {ENVIRONMENT}=PACKAGE"
    )
