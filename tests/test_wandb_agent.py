"""Tests that `wandb agent` starts runs with arguments that Hydra understands."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

ROOT = Path(__file__).parents[1]
SWEEP = yaml.safe_load((ROOT / "examples" / "wandb_sweep" / "sweep.yaml").read_text(encoding="utf-8"))
PARAMETERS: dict[str, dict[str, Any]] = SWEEP["parameters"]
GRID = list(product(*(values.get("values", [values.get("value")]) for values in PARAMETERS.values())))


def agent_command(values: dict[str, Any]) -> list[str]:
    """Returns the command of one run, with the macros filled in as the agent of W&B does."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    command = []
    for part in create_sweep_command(list(SWEEP["command"])):
        match part:
            case "${env}":
                command += ["/usr/bin/env"]
            case "${program}":
                command.append(SWEEP["program"])
            case "${args_no_hyphens}":
                command += arguments["args_no_hyphens"]
            case _:
                command.append(part)
    return command


@pytest.mark.parametrize("values", GRID, ids=str)
def test_agent_arguments_compose(values: tuple[Any, ...]) -> None:
    expected = dict(zip(PARAMETERS, values, strict=True))
    environment, python, program, *overrides = agent_command(expected)
    assert (environment, python) == ("/usr/bin/env", "python")
    assert (ROOT / program).is_file()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", overrides)
    assert cfg.prompts_per_class == expected["prompts_per_class"]
    assert cfg.scales._target_.endswith("SquareCrops")
    assert len(cfg.scales.fractions) == {"single": 1, "multi": 4}[expected["scales"]]
    assert cfg.selection.keep is None
    assert cfg.logger.offline is False


def test_objective_is_a_logged_metric() -> None:
    schema = (ROOT / "docs" / "result.schema.json").read_text(encoding="utf-8")
    assert f'"{SWEEP["metric"]["name"]}"' in schema
