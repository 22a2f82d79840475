"""Every YAML is read: it composes into its root and fits the constructor that it names."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig, OmegaConf

from lgclip.methods.base import Classifier
from lgclip.tiny.recipe import Recipe

CONF = Path(__file__).parents[1] / "conf"
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
    Classifier: {"prototype", "selection", "calibration", "scales", "has_text"},
    Recipe: {"corpus"},
    Logger: {"save_dir"},
}
"""What an entry script hands to a constructor besides the config."""
ASKED = {
    "dataset=folder": ["dataset.root=DIR"],
    "ood=imagenet": ["dataset=imagenet"],  # whose choice of classes the shifted sets take over
    "dataset=hub": ["dataset.repo=OWNER/NAME"],
    "diffuser=folder": ["diffuser.root=DIR"],
    "diffuser=hub": ["diffuser.model=OWNER/NAME"],
    "encoder=open_clip": ["encoder.model=NAME"],
    "encoder=timm": ["encoder.model=NAME"],
    **{f"llm={name}": ["llm.model=NAME"] for name in ("local", "server", "ollama", "llama_cpp")},
    "llm=file": ["llm.path=FILE"],
    "llm=captions": ["llm.file=FILE"],
}
"""What only the user can say."""


def groups_of(root: str) -> dict[str, Any]:
    """The groups in a root's defaults list, with their choices; those of the root that it takes over too."""
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    found: dict[str, Any] = {}
    for entry in written["defaults"]:
        chosen = entry if isinstance(entry, dict) else groups_of(entry) if entry in ROOTS else {}
        found |= {group.rpartition(" ")[2]: choice for group, choice in chosen.items()}  # `override method`
    return found


def root_of(group: str, choice: str) -> str:
    """The root that a choice is for: recipes are trained, all else is evaluated."""
    if group == "experiment":  # its first line is the command
        return next(root for root in ROOTS if f"{root}.py" in (CONF / group / f"{choice}.yaml").read_text())
    return "train" if group == "method" and choice.startswith("tiny_") else "evaluate"


def composed(root: str, *overrides: str) -> DictConfig:
    needed = ["method=tiny_encoder"] if root == "train" and not any(o.startswith("method=") for o in overrides) else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, [*needed, *overrides], return_hydra_config=True)


def constructors(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a config that names a constructor."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, inside in node.items():
            yield from constructors(inside, f"{place}.{key}".lstrip("."))


def check_fit(place: str, node: dict[str, Any]) -> None:
    """A constructor takes every key of its YAML, and needs nothing that neither YAML nor script gives."""
    target: type = get_class(node["_target_"])
    given = {key for key in node if not key.startswith("_")}
    runtime = next((names for base, names in RUNTIME.items() if issubclass(target, base)), set())
    assert not given & runtime, f"{place}: {given & runtime} is the script's to give"
    inspect.signature(target).bind(**dict.fromkeys(given | runtime))
    # `**schedule` takes any key, so those are looked for in the base that it goes to.
    known = {name for base in target.__mro__ for name in inspect.signature(base.__init__).parameters}
    assert given <= known, f"{place}: {given - known} is no parameter of {node['_target_']}"


def test_every_group_is_reached_from_a_root_and_every_default_is_there() -> None:
    reached = {root: groups_of(root) for root in ROOTS}
    assert ROOTS == ["evaluate", "generate", "train"]
    assert {group for groups in reached.values() for group in groups} >= {group for group, _ in CHOICES}
    for groups in reached.values():
        assert {(g, c) for g, c in groups.items() if c not in (None, "???")} <= set(CHOICES)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_a_choice_composes_and_fits_its_constructor(group: str, choice: str) -> None:
    wanted = f"{group}={choice}"
    config = composed(root_of(group, choice), wanted, *ASKED.get(wanted, []))
    hydra, own = config.hydra, OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert hydra.runtime.choices[group] == choice
    resolved = OmegaConf.to_container(_with_choices(own, hydra), resolve=True, throw_on_missing=True)
    parts = dict(constructors(resolved))
    for place, node in parts.items():
        check_fit(place, node)
    written: Any = OmegaConf.load(CONF / group / f"{choice}.yaml")
    if group not in WHOLE_RUN:
        assert (group in parts) == ("_target_" in (written or {})), "what the file says is what is composed"


def _with_choices(own: DictConfig, hydra: DictConfig) -> DictConfig | ListConfig:
    """Puts in place of `${hydra:...}`, which only a run can answer, what the run would."""
    text = OmegaConf.to_yaml(own).replace("${hydra:runtime.choices.method}", str(hydra.runtime.choices.get("method")))
    return OmegaConf.create(text)


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_composes_and_experiments_have_the_last_word(root: str) -> None:
    composed(root)
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    after = written["defaults"][written["defaults"].index("_self_") + 1 :]
    wanted = {
        "evaluate": [{"protocol": "clean"}, {"experiment": None}],
        "train": [{"override method": "tiny_encoder"}],
        "generate": [],
    }
    assert after == wanted[root], "what stands before `_self_` is silently overruled by the root"


@pytest.mark.parametrize("overrides", [[], ["protocol=official_code", "seed=3"]])
def test_generate_takes_what_evaluate_takes(overrides: list[str]) -> None:
    whole, half = composed("evaluate", *overrides), composed("generate", *overrides)
    assert half.keys() == whole.keys()
    assert {key: whole[key] for key in whole if key != "hydra"} == {key: half[key] for key in half if key != "hydra"}


def test_a_protocol_sets_values_and_the_command_line_has_the_last_word() -> None:
    clean, official = composed("evaluate"), composed("evaluate", "protocol=official_code")
    assert (clean.prompts_per_class, clean.images_per_prompt, clean.noise) == (10, 1, "image")
    assert (official.prompts_per_class, official.images_per_prompt, official.noise) == (1, 10, "repeat")
    assert (clean.prototype.renormalise, official.prototype.renormalise) == (True, False)
    assert official.scales.weights == list(range(1, 11))
    mine = composed("evaluate", "protocol=official_code", "prompts_per_class=3", "scales=single", "prototype=knn")
    assert (mine.prompts_per_class, mine.images_per_prompt, mine.scales.fractions) == (3, 10, [1.0])
    assert mine.prototype._target_.endswith("WeightedKNN")


def test_a_bare_sweep_has_a_grid_to_go_over() -> None:
    params = OmegaConf.to_container(composed("evaluate").hydra.sweeper.params)
    assert params == {"prompts_per_class": "1,2,5,10", "scales": "single,multi"}


def test_a_yaml_is_short_and_says_what_it_is() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        lines = lines[1:] if lines[0] == "# @package _global_" else lines  # Hydra wants that first
        assert lines[0].startswith("# "), f"{path.name}: its first line says what it is"
        assert len(lines) <= 45, path


def test_no_file_is_forgotten() -> None:
    files = [path for path in CONF.rglob("*") if path.is_file()]
    assert len(files) == len(ROOTS) + len(CHOICES) + len(LAUNCHERS) >= 20


PAGES = {
    "dataset": "datasets", "llm": "llms", "diffuser": "diffusers", "encoder": "encoders", "scales": "protocols",
    "protocol": "protocols", "method": "methods", "prototype": "methods", "selection": "methods",
    "calibration": "methods", "student": "students", "ood": "students", "paradigm": "paradigms",
    "learner": "prompt_learning",
}  # fmt: skip
"""Where each group's choices are told of."""


def test_every_choice_has_its_place_in_the_docs() -> None:
    told = {page: (CONF.parent / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES.values()}
    recipes = {
        ("method", choice) for group, choice in CHOICES if group == "method" and choice.startswith("tiny_")
    }  # the model card's
    untold = [
        f"{group}={choice}"
        for group, choice in CHOICES
        if group in PAGES and (group, choice) not in recipes and not re.search(rf"[`=]{choice}\b", told[PAGES[group]])
    ]
    assert not untold
    assert {group for group, _ in CHOICES} - PAGES.keys() == {"experiment", "logger", "trainer"}
