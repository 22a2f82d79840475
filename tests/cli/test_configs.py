"""Tests that every YAML file composes into its root and fits the constructor it names."""

import inspect
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_class
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig, OmegaConf

from lgclip.methods.base import Classifier
from lgclip.prompts.local_llm import LocalLLM
from lgclip.runtime.instantiate import build
from lgclip.runtime.known_settings import check_known_settings
from lgclip.tiny.recipe import Recipe

CONF = Path(__file__).parents[2] / "conf"
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml"))
CHOICES = sorted(
    (group, path.relative_to(CONF / group).with_suffix("").as_posix())
    for group in (folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
    for path in (CONF / group).rglob("*.yaml")
)
LAUNCHERS = sorted((CONF / "hydra" / "launcher").glob("*.yaml"))
"""Presets of Hydra's own parts; test_launchers.py runs them."""
WHOLE_RUN = {"experiment", "protocol"}
"""Groups whose files set values of the whole run, not of one constructor."""

RUNTIME = {
    Classifier: {"prototype", "selection", "calibration", "align", "transduction", "scales", "has_text"},
    Recipe: {"corpus"},
    Logger: {"save_dir"},
}
"""What an entry script hands to a constructor besides the config."""
ASKED = {
    "dataset=folder": ["dataset.root=DIR"],
    "dataset=names": ["dataset.names=FILE"],
    "ood=imagenet": ["dataset=imagenet"],  # whose choice of classes the shifted sets take over
    "dataset=hub": ["dataset.repo=OWNER/NAME"],
    "dataset=webdataset": ["dataset.root=DIR"],
    "diffuser=folder": ["diffuser.root=DIR"],
    "diffuser=hub": ["diffuser.model=OWNER/NAME"],
    "encoder=open_clip": ["encoder.model=NAME"],
    "encoder=timm": ["encoder.model=NAME"],
    **{f"llm={name}": ["llm.model=NAME"] for name in ("local", "server", "ollama", "llama_cpp")},
    "llm=file": ["llm.path=FILE"],
    "llm=captions": ["llm.file=FILE"],
    "align=file": ["align.path=RUN_DIR"],
}
"""What only the user can say."""


def groups_of(root: str) -> dict[str, Any]:
    """Returns the groups of a root's defaults list with their choices, including those of an inherited root."""
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    groups: dict[str, Any] = {}
    for entry in written["defaults"]:
        chosen = entry if isinstance(entry, dict) else groups_of(entry) if entry in ROOTS else {}
        groups |= {group.rpartition(" ")[2]: choice for group, choice in chosen.items()}  # `override method`
    return groups


def root_of(group: str, choice: str) -> str:
    """Returns the root that a choice belongs to: recipes are trained, all others are evaluated, rejection is built."""
    if group == "rejection":
        return "build"
    if group == "experiment":  # its first line is the command
        return next(root for root in ROOTS if f"{root}.py" in (CONF / group / f"{choice}.yaml").read_text())
    return "train" if group == "method" and choice.startswith("tiny_") else "evaluate"


def composed(root: str, *overrides: str) -> DictConfig:
    needed = ["method=tiny_encoder"] if root == "train" and not any(o.startswith("method=") for o in overrides) else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, [*needed, *overrides], return_hydra_config=True)


def constructors(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every part of a config that names a constructor."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, inside in node.items():
            yield from constructors(inside, f"{place}.{key}".lstrip("."))


def assert_fits(place: str, node: dict[str, Any]) -> None:
    """Checks that a constructor accepts every key of its YAML file and requires no other."""
    target: type = get_class(node["_target_"])
    keys = {key for key in node if not key.startswith("_")}
    runtime = next((names for base, names in RUNTIME.items() if issubclass(target, base)), set())
    assert not keys & runtime, f"{place}: {keys & runtime} is the script's to give"
    inspect.signature(target).bind(**dict.fromkeys(keys | runtime))
    # `**schedule` takes any key, so those are looked for in the base that it goes to.
    known = set()
    for base in target.__mro__:
        for name in inspect.signature(base.__init__).parameters:
            known.add(name)
    assert keys <= known, f"{place}: {keys - known} is no parameter of {node['_target_']}"


def test_every_group_and_default_exists() -> None:
    reached = {root: groups_of(root) for root in ROOTS}
    assert ROOTS == ["build", "evaluate", "generate", "train"]
    assert set(chain.from_iterable(reached.values())) >= {group for group, _ in CHOICES}
    for groups in reached.values():
        assert {(g, c) for g, c in groups.items() if c not in (None, "???")} <= set(CHOICES)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_choices_compose_and_fit_their_constructors(group: str, choice: str) -> None:
    expected = f"{group}={choice}"
    config = composed(root_of(group, choice), expected, *ASKED.get(expected, []))
    hydra = config.hydra
    run_config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert hydra.runtime.choices[group] == choice
    resolved = OmegaConf.to_container(_with_choices(run_config, hydra), resolve=True, throw_on_missing=True)
    parts = dict(constructors(resolved))
    for place, node in parts.items():
        assert_fits(place, node)
    written: Any = OmegaConf.load(CONF / group / f"{choice}.yaml")
    if group not in WHOLE_RUN:
        assert (group in parts) == ("_target_" in (written or {})), "what the file says is what is composed"


def _with_choices(run_config: DictConfig, hydra: DictConfig) -> DictConfig | ListConfig:
    """Replaces `${hydra:...}`, which is defined only in a run, by the values a run would have."""
    text = OmegaConf.to_yaml(run_config).replace(
        "${hydra:runtime.choices.method}", str(hydra.runtime.choices.get("method"))
    )
    return OmegaConf.create(text)


@pytest.mark.parametrize("root", ROOTS)
def test_experiments_override_root_configs(root: str) -> None:
    composed(root)
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    after = written["defaults"][written["defaults"].index("_self_") + 1 :]
    expected = {
        "evaluate": [{"protocol": "clean"}, {"experiment": None}],
        "train": [{"override method": "tiny_encoder"}],
        "build": [],
        "generate": [],
    }
    assert after == expected[root], "what stands before `_self_` is silently overruled by the root"


@pytest.mark.parametrize("overrides", [[], ["protocol=official_code", "seed=3"]])
def test_generate_accepts_evaluate_overrides(overrides: list[str]) -> None:
    full_config = composed("evaluate", *overrides)
    half = composed("generate", *overrides)
    assert half.keys() == full_config.keys()
    assert {key: full_config[key] for key in full_config if key != "hydra"} == {
        key: half[key] for key in half if key != "hydra"
    }


def test_protocols_are_overridden_by_the_command_line() -> None:
    clean = composed("evaluate")
    official = composed("evaluate", "protocol=official_code")
    assert (clean.prompts_per_class, clean.images_per_prompt, clean.noise) == (10, 1, "image")
    assert (official.prompts_per_class, official.images_per_prompt, official.noise) == (1, 10, "repeat")
    assert (clean.prototype.renormalize, official.prototype.renormalize) == (True, False)
    assert official.scales.weights == list(range(1, 11))
    mine = composed("evaluate", "protocol=official_code", "prompts_per_class=3", "scales=single", "prototype=knn")
    assert (mine.prompts_per_class, mine.images_per_prompt, mine.scales.fractions) == (3, 10, [1.0])
    assert mine.prototype._target_.endswith("WeightedKNN")


def test_default_sweep_has_a_grid() -> None:
    params = OmegaConf.to_container(composed("evaluate").hydra.sweeper.params)
    assert params == {"prompts_per_class": "1,2,5,10", "scales": "single,multi"}


def test_yaml_files_are_short_and_documented() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        lines = lines[1:] if lines[0] == "# @package _global_" else lines  # Hydra wants that first
        assert lines[0].startswith("# "), f"{path.name}: its first line says what it is"
        assert len(lines) <= 52, path


def test_all_config_files_are_covered() -> None:
    files = [path for path in CONF.rglob("*") if path.is_file()]
    assert len(files) == len(ROOTS) + len(CHOICES) + len(LAUNCHERS) >= 20


DOCUMENTED = (
    "dataset", "llm", "diffuser", "encoder", "scales", "protocol", "method", "prototype", "selection", "calibration",
    "student", "ood", "paradigm", "prompt_tuning", "logger", "trainer", "rejection", "align", "transduction", "text",
    "encoder2", "pools", "executor",
)  # fmt: skip
"""Groups whose choices a page of the docs names, besides the generated reference."""


def test_every_choice_is_documented() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (CONF.parent / "docs").rglob("*.md"))
    # The recipes of the package's models are in their model card.
    missing = [
        f"{group}={choice}"
        for group, choice in CHOICES
        if group in DOCUMENTED and not choice.startswith("tiny_") and not re.search(rf"[`=]{choice}\b", pages)
    ]
    assert not missing
    assert {group for group, _ in CHOICES} - set(DOCUMENTED) == {"experiment"}


NOT_COMPARED = {"tiny", "folder", "hub"}
"""Choices of `diffuser` that are no pretrained model: the small one, existing images, and any model."""


def test_comparison_of_generators_has_every_preset() -> None:
    presets = {choice for group, choice in CHOICES if group == "diffuser"} - NOT_COMPARED
    config = composed("evaluate", "experiment=generators")
    assert set(config.hydra.sweeper.params["diffuser"].split(",")) == presets
    assert config.hydra.runtime.choices.method == "student"
    assert config.hydra.runtime.choices.dataset not in ("shapes", "digits")


@pytest.mark.parametrize("experiment", ["generators", "generators/shapes", "cip/controls"])
def test_students_have_images_of_their_own_seed(experiment: str) -> None:
    """Images and student change together, so that an interval over seeds covers both."""
    config = composed("evaluate", f"experiment={experiment}", "student.seed=3")
    assert (config.seed, config.student.seed) == (3, 3)
    assert len(config.hydra.sweeper.params["student.seed"].split(",")) >= 3


def sweep_values(override: Override) -> list[Any]:
    """Returns the values of a sweep; of an interval its ends, and of a constant the constant."""
    if not override.is_sweep_override():
        return [override.get_value_string()]
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [interval.start, interval.end]
    return list(override.sweep_string_iterator())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [choice for group, choice in CHOICES if group == "experiment"])
def test_sweeps_of_experiments_name_settings_that_exist(experiment: str) -> None:
    """Each value of a sweep is composed, since a misspelled setting would fail only in the jobs."""
    root = root_of("experiment", experiment)
    params = composed(root, f"experiment={experiment}").hydra.sweeper.params or {}
    overrides = OverridesParser.create().parse_overrides([f"{name}={values}" for name, values in params.items()])
    sweeps = {override.key_or_group: sweep_values(override) for override in overrides}
    for place in range(max(map(len, sweeps.values()), default=0)):
        job = [f"{name}={values[min(place, len(values) - 1)]}" for name, values in sweeps.items()]
        check_known_settings(composed(root, f"experiment={experiment}", *job))


def test_controls_of_captions_differ_in_prompts_alone() -> None:
    choices = composed("evaluate", "experiment=cip/controls").hydra.sweeper.params["llm"].split(",")
    settings = {}
    for choice in choices:
        generator = build(composed("evaluate", "experiment=cip/controls", f"llm={choice}").llm, _convert_="all")
        settings[choice] = (type(generator).__name__, generator.form_name)
    assert settings == {
        "tiny_captioner_basic": ("Captioner", "basic"),
        "tiny_captioner": ("Captioner", "cip"),
        "tiny_captioner_class": ("Captioner", "cip, shuffled by class"),
        "tiny_captioner_all": ("Captioner", "cip, shuffled over all"),
        "scene_descriptions": ("SceneDescriptions", "cip"),
    }


ROWS = sorted(
    path.stem for path in (CONF / "experiment" / "lgclip").glob("*.yaml") if "/llm: official" in path.read_text("utf-8")
)


@pytest.mark.parametrize("row", ROWS)
def test_paper_row_runs_with_the_stand_in(row: str) -> None:
    """The model of `llm=official` is no longer served; the stand-in has its request and runs on this machine."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", [f"experiment=lgclip/{row}", "llm=official_standin"])
        official = compose("evaluate", ["llm=official"])
    generator = build(cfg.llm, _convert_="all")
    assert isinstance(generator, LocalLLM)
    assert generator.instruction == official.llm.instruction
