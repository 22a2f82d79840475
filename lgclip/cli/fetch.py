"""Implements `lgclip fetch`: downloads what a run needs, so that the run itself needs no network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from omegaconf import DictConfig, open_dict

from lgclip.runtime.config_aliases import register_second_encoders


def fetch_command(overrides: Sequence[str], conf: Path, *, multirun: bool = False) -> Iterator[str]:
    """Runs `lgclip fetch`.

    Args:
        overrides: Overrides as for evaluate.py.
        conf: Folder of the configs.
        multirun: Whether to fetch for every job of a sweep: over values with commas, and over the experiment's grid.

    Yields:
        A line for each model and data set, once it is there.

    Raises:
        ValueError: If a part cannot be built, or the hub or a server cannot be reached.
    """
    reported: set[str] = set()
    register_second_encoders()
    for job in _jobs(overrides, conf) if multirun else [list(overrides)]:
        with initialize_config_dir(str(conf), version_base="1.3"):
            cfg = compose("evaluate", job)
        try:
            for line in _fetch(cfg):
                # The jobs of a sweep share most of their models.
                if line not in reported:
                    reported.add(line)
                    yield line
        # Hydra wraps a ValueError of a constructor; its message is the one that helps.
        except InstantiationException as error:
            raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None


def _jobs(overrides: Sequence[str], conf: Path) -> list[list[str]]:
    """Returns the overrides of each job of a sweep."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("evaluate", [part for part in overrides if part.startswith("experiment=")], True)
        params = cfg.hydra.sweeper.get("params") or {}
        overridden = {part.partition("=")[0] for part in overrides}
        grid = [f"{key}={value}" for key, value in params.items() if key not in overridden]
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([*grid, *overrides])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in jobs]


def _fetch(cfg: DictConfig) -> Iterator[str]:
    from lgclip.runtime.instantiate import build
    from lgclip.stages.parts import GenerationParts, encoder_config

    datasets = {f"dataset={cfg.dataset.get('name', '')}": cfg.dataset}
    datasets |= {f"ood.{name}": node for name, node in cfg.ood.items()}
    for node in datasets.values():
        # The switch of the public data sets; others are your own copies, or are downloaded when they are opened.
        if "download" in node:
            with open_dict(node):
                node.download = True
        dataset = build(node, _convert_="all")
        yield f"data set  {dataset.name}, {dataset.split}: {len(dataset):,} images"
    parts = GenerationParts.from_config(cfg)
    encoder = build(encoder_config(cfg), _convert_="all")
    models: dict[str, Any] = {"diffuser": parts.diffuser, "encoder": encoder}
    # Images of a folder need no prompts, but sentences may.
    needs_texts = bool(cfg.get("text")) and build(cfg.text, _convert_="all").generator(parts.llm) is not None
    if parts.diffuser.needs_prompts or needs_texts:
        models = {"llm": parts.llm, **models}
    for group, model in models.items():
        model.download()
        for repository, _ in model.repositories():
            yield f"{group:<9} {repository}"
