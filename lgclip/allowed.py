"""What a config may name: a `_target_` is called only if what it really is stands on a list.

Hydra's `instantiate` calls whatever a config names, and a list of what it must not call always lacks something. Here
a name that is not on the list is not even imported, and one that is on it is told by the module and the name that
the object itself has: `lgclip.errors.os.system` is `posix.system`.

What stands under `hydra` (callbacks, launchers, sweepers, logging) is built by Hydra before a run starts, and does
not come by here.
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

ENVIRONMENT = "LGCLIP_ALLOW"
"""Names packages whose classes and functions a config may name too, as in `mypackage,other.module`."""

_AT_START = os.environ.get(ENVIRONMENT, "")  # `hydra.job.env_set`, which is a config, is set later than this is read

PLACES = (
    "lgclip", "lightning.Trainer", "lightning.pytorch.Trainer", "lightning.pytorch.trainer",
    "lightning.pytorch.loggers", "lightning.pytorch.strategies", "lightning.pytorch.profilers",
    "lightning.pytorch.plugins.environments", "lightning.fabric.plugins.environments",
)  # fmt: skip
"""Where a name is looked up at all: to import a module is to run it."""

PARTS = frozenset({
    "lgclip.datasets.base.Dataset", "lgclip.prompts.base.PromptWriter", "lgclip.diffuser.base.ImageSource",
    "lgclip.encoder.base.Encoder", "lgclip.scales.Scales", "lgclip.methods.base.Classifier", "lgclip.rules.Rule",
    "lgclip.selection.Selection", "lgclip.calibration.LeaveOneOut", "lgclip.tiny.recipe.Recipe",
    "lgclip.tiny.corpus.Corpus", "lgclip.student_spec.Student", "lgclip.lora_spec.LoraTuning",
    "lgclip.prompt_spec.PromptSpec", "lgclip.paradigms.Paradigm",
    "lightning.pytorch.trainer.trainer.Trainer", "lightning.fabric.loggers.logger.Logger",
    "lightning.pytorch.strategies.strategy.Strategy", "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.fabric.plugins.environments.cluster_environment.ClusterEnvironment",
})  # fmt: skip
"""What may be built: these classes, and those of lgclip and Lightning that are derived from them."""

_PUBLIC = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_LISTS = "_execution_whitelist_" in inspect.signature(instantiate).parameters  # Hydra 1.4 wants to be told as well


class TargetError(ValueError):
    """A config names what it may not name, or what is not there."""


def build(config: Any, **given: Any) -> Any:
    """Builds what a config names, as `hydra.utils.instantiate` does, if all that it names is allowed.

    Args:
        config: A part of the config; None builds nothing.
        given: What `instantiate` takes: values that the config does not hold, `_convert_`, `_partial_`.

    Returns:
        What the target returns; None for None.

    Raises:
        TargetError: If a target at any depth is not allowed. Nothing has been called then.
    """
    if config is None:
        return None
    if not isinstance(config, DictConfig | ListConfig):
        raise TargetError(f"a part of the config is {config!r}: it must be a mapping with _target_")
    named = list(_targets(_as_built(config, given)))
    for key, name in named:
        _checked(key, name)
    told = {"_execution_whitelist_": tuple(sorted({name for _, name in named}))} if _LISTS else {}
    return instantiate(config, **given, **told)


def target_of(config: DictConfig) -> Any:
    """What a config names at its top, if it is allowed; it is not called.

    Raises:
        TargetError: If it is not allowed.
    """
    return _checked(config._get_full_key("_target_"), config["_target_"])


def _as_built(config: DictConfig | ListConfig, given: dict[str, Any]) -> Any:
    """The config as `instantiate` will see it: with what is given, and interpolations resolved."""
    seen: Any = copy.deepcopy(config)
    seen._set_flag(flags=["allow_objects", "struct", "readonly"], values=[True, False, False])
    seen._set_parent(config._get_parent())
    if given and isinstance(seen, DictConfig):
        seen = OmegaConf.merge(seen, given)
    OmegaConf.resolve(seen)
    return seen


def _targets(whole: Any) -> Iterator[tuple[str, Any]]:
    """Every target at or below a node, with its place in the config.

    Values are read one by one, as `instantiate` reads them: one that was resolved to another interpolation is
    resolved again there, and so it is here.
    """
    # `oc.decode` returns plain dictionaries.
    node: Any = OmegaConf.create(whole, flags={"allow_objects": True}) if isinstance(whole, dict | list) else whole
    if not OmegaConf.is_config(node):
        return
    keys: Iterable[Any] = list(node) if OmegaConf.is_dict(node) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key):  # `instantiate` says which value it is
            continue
        if key == "_target_":
            yield node._get_full_key(key), node[key]
        yield from _targets(node[key])


def _checked(key: str, name: Any) -> Any:
    """What a target names.

    Raises:
        TargetError: If it is not allowed, or not there.
    """
    said = f"{key}={name}"
    if not (isinstance(name, str) and _PUBLIC.fullmatch(name)):
        raise TargetError(f"{said} is not a public dotted name, as in lgclip.datasets.folder.Folder")
    yours = _yours()
    if not _within(name, (*PLACES, *yours)):
        raise _refused(said)
    try:
        found = _located(said, name, yours)
    except (ImportError, AttributeError) as error:
        raise TargetError(f"{said} is not to be had: {error}") from error
    own = _identity(found)
    part = isinstance(found, type) and _within(own, PLACES) and any(_identity(base) in PARTS for base in found.__mro__)
    if not part and not (callable(found) and _within(own, yours)):
        raise _refused(said, "" if own == name else f"it is {own or repr(found)}")
    return found


def _located(said: str, name: str, yours: tuple[str, ...]) -> Any:
    """The object of a dotted name, found as Hydra finds it, but not through a module of elsewhere."""
    place, *rest = name.split(".")
    found: Any = import_module(place)
    for part in rest:
        place = f"{place}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            if not isinstance(found, ModuleType):
                raise
            found = import_module(place)
        if isinstance(found, ModuleType) and found.__name__ != place and not _within(found.__name__, (*PLACES, *yours)):
            raise _refused(said, f"{place} is the module {found.__name__}")
    return found


def _identity(found: Any) -> str:
    """The module and the name that an object gives as its own; empty if it has none."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""


def _within(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _yours() -> tuple[str, ...]:
    """The packages that the environment names.

    Raises:
        TargetError: If one is no name of a package, or the environment is another than at the start.
    """
    if os.environ.get(ENVIRONMENT, "") != _AT_START:
        raise TargetError(f"{ENVIRONMENT} has changed since the start: set it in the shell, not in hydra.job.env_set")
    names = tuple(name.strip() for name in _AT_START.split(",") if name.strip())
    for name in names:
        if not _PUBLIC.fullmatch(name):
            raise TargetError(f"{ENVIRONMENT}: {name!r} is no package; give names as in mypackage,other.module")
    return names


def _refused(said: str, why: str = "") -> TargetError:
    return TargetError(
        f"{said} is not allowed{f', {why}' if why else ''}: a config may name lgclip's own parts and Lightning's "
        "Trainer, loggers, strategies, profilers and cluster environments. If it is of a package that you trust, name "
        f"that package in the environment: {ENVIRONMENT}=PACKAGE"
    )
