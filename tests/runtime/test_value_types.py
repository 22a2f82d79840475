"""Tests that a value of a wrong type is one error with its key before anything is built, and no valid value is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lgclip import Experiment
from lgclip.runtime import known_settings
from lgclip.runtime.config_aliases import register_second_encoders
from lgclip.runtime.instantiate import check, target_of
from lgclip.runtime.value_types import _parameter_types, check_type

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("llm", "diffuser", "encoder", "scales", "text", "prototype", "selection", "calibration", "align",
          "transduction", "pools", "student", "paradigm", "prompt_tuning", "executor", "dataset", "method",
          "rejection")  # fmt: skip
"""The groups whose choices are parts of lgclip; those of Lightning and Hydra check their values themselves."""


def composed(*overrides: str, name: str = "evaluate") -> DictConfig:
    GlobalHydra.instance().clear()
    register_second_encoders()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (math.nan, float),
        (math.inf, float),
        (10**30, int),
        (True, bool),
        ("é\u202e\x00\ud800", str),
        (None, int | None),
        ([1, 2.0], Sequence[float]),
        ([], Sequence[float]),
        (["a"], Sequence[str]),
        ("abc", str | Sequence[str]),
        ({"a": {"b": [None]}}, Mapping[str, Any]),
        (object(), int),  # an object that Python code handed over
        ({"_target_": "lgclip.x"}, int),  # a part, which its own target checks
        ("x", Path | None),
    ],
)
def test_valid_values_pass(value: object, hint: object) -> None:
    check_type("part.value", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("x", int, "=x: it must be an integer"),
        (2.5, int, "=2.5: it must be an integer"),
        (2.0, int, "=2.0: it must be an integer"),
        ("1", float, '="1": it must be a number'),
        (True, int, "=true: it must be an integer"),
        ("no", bool, "=no: it must be true or false"),
        (1, bool, "=1: it must be true or false"),
        (None, str, "=null: it must be text"),
        (2024, str, "=2024: it must be text, which quotes make of it: 'part.value=\"2024\"'"),
        (2.5, int | str, "=2.5: it must be an integer or text"),
        ("few", int | None, "=few: it must be an integer or null"),
        ("abc", Sequence[str], "=abc: it must be a list of texts, as in [A,B]"),
        (7, Sequence[str], "=7: it must be a list of texts, as in [A,B]"),
        (7, Mapping[str, Any], "=7: it must be a mapping {NAME: VALUE}"),
        (["a"], Sequence[float], '=["a"]: it must be a list of numbers, as in [A,B]'),
        ({"a": "x"}, Mapping[str, float], '={"a": "x"}: it must be a mapping {NAME: VALUE}'),
        ("\x1b[31m", int, '="\\u001b[31m": it must be an integer'),
    ],
)
def test_invalid_value_is_named_with_its_key(value: object, hint: object, message: str) -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        check_type("part.value", value, hint)
    assert str(caught.value) == f"part.value{message}"


def test_long_value_is_shortened() -> None:
    with pytest.raises(ValueError, match=r"^k=x{77}\.\.\.: it must be an integer$"):
        check_type("k", "x" * 3000, int)


def parts_of(config: DictConfig, key: str) -> Iterator[tuple[str, DictConfig]]:
    """Yields every node of a config that names one of lgclip's targets, with its key."""
    if str(config.get("_target_", "")).startswith("lgclip."):
        yield key, config
    for name in config:
        # Not resolved: a preset by itself has no root that its interpolations refer to.
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_missing():
            yield from parts_of(node, f"{key}.{name}")


@pytest.mark.parametrize("group", GROUPS)
def test_each_value_of_a_preset_has_a_known_type_and_passes(group: str) -> None:
    """The types come from the code: a value without a parameter that declares one would go unchecked."""
    unchecked: set[str] = set()
    count = 0
    for path in sorted((CONF / group).glob("*.yaml")):
        config = OmegaConf.load(path)
        assert isinstance(config, DictConfig)
        for key, node in parts_of(config, path.stem):
            types = _parameter_types(target_of(node))
            names = [str(name) for name in node if name not in ("_target_", "_partial_", "_convert_", "defaults")]
            unchecked |= {f"{key}.{name}" for name in names if name not in types}
            for name in types.keys() & set(names):
                if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
                    value = node._get_node(name)
                    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else node[name]
                    check_type(f"{key}.{name}", plain, types[name])
            count += 1
    assert count
    assert not unchecked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffuser.steps=2.5", "diffuser.steps=2.5: it must be an integer or null"),
        ("diffuser.channels_last=maybe", "diffuser.channels_last=maybe: it must be true or false or null"),
        ("prototype.renormalize=no", "prototype.renormalize=no: it must be true or false"),
        ("encoder.batch_size=abc", "encoder.batch_size=abc: it must be an integer"),
        ("encoder.model=null", "encoder.model=null: it must be text"),
        ("scales.fractions=[a]", 'scales.fractions=["a"]: it must be a list of numbers, as in [A,B]'),
        ("plan=no", "plan=no: it must be true or false"),
        ("tile=2.5", "tile=2.5: it must be an integer or null"),
        ("tile=0", "tile=0: it must be at least 1, or null"),
        ("checkpoint=[1]", "checkpoint=[1]: it must be text or null"),
        ("paths.store=5", "paths.store=5: it must be text or null, which quotes make of it: 'paths.store=\"5\"'"),
        ("paths=5", "paths=5: it must be a mapping {NAME: VALUE}"),
        ("paths.images=[tar]", 'paths.images=["tar"]: it must be text or null'),
        ("membership=1", "membership=1: it must be true or false"),
    ],
)
def test_run_rejects_a_wrong_type_before_it_builds(override: str, message: str, tmp_path: Path) -> None:
    config = composed(override)
    with pytest.raises(ValueError, match="it must be") as caught:
        Experiment.from_config(config).plan()
    assert str(caught.value) == message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_second_encoder_is_named_by_its_group(tmp_path: Path) -> None:
    config = composed("encoder2=timm", "encoder2.batch_size=abc", f"paths.store={tmp_path}")
    with pytest.raises(ValueError, match=r"^encoder2\.batch_size=abc: it must be an integer$"):
        Experiment.from_config(config).plan()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+encoder.bogus=3", r"^encoder\.bogus: OpenClip has no such setting; it has model, .*batch_size$"),
        ("+encoder2.bogus=3", r"^encoder2\.bogus: OpenClip has no such setting"),
        (
            "+selection.kep=3",
            r"^selection\.kep: First has no .*; it has keep\nDid you mean 'selection\.keep'",
        ),
        ("+executor.x=1", r"^executor\.x: LocalExecutor has no such setting$"),
        ("+trainer.max_epoch=3", r"^trainer\.max_epoch: Trainer has no .*\nDid you mean 'trainer\.max_epochs'"),
        ("+logger.dir=x", r"^logger\.dir: CSVLogger has no .*\nDid you mean 'logger\.save_dir'"),
    ],
)
def test_part_without_a_setting_names_it(override: str, message: str) -> None:
    config = composed("encoder2=tiny", override)
    group = override.lstrip("+").partition(".")[0]
    with pytest.raises(ValueError, match=message):
        check(config[group])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++promts_per_class=3", r"^promts_per_class: the config, .*\nDid you mean 'prompts_per_class'"),
        ("+zzz=3", r"^zzz: the config, which --cfg job prints, has no such setting$"),
        ("+paths.stor=x", r"^paths\.stor: .*\nDid you mean 'paths\.store'"),
    ],
)
def test_run_rejects_an_unknown_setting_before_it_builds(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.from_config(composed(override))


@pytest.mark.parametrize(
    "overrides", [["+note=abc", "encoder.model=${note}"], ["+shared={a: abc}", "llm.model=${shared.a}"]]
)
def test_values_that_interpolations_use_are_allowed(overrides: list[str]) -> None:
    Experiment.from_config(composed(*overrides))


def test_known_settings_are_those_of_the_entry_scripts() -> None:
    values = set(composed())
    assert values == set(composed(name="generate")) == {*known_settings.GROUPS, *known_settings.VALUES}
    assert set(composed(name="build")) - values == set(known_settings.BUILD_VALUES)
    training = composed(name="train")
    assert set(training) - values == set(known_settings.TRAINING_VALUES)
    assert set(training.paths) == set(known_settings.PATHS)
