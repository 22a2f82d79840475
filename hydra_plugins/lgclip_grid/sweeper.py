"""Checks the jobs of a grid by composing one config per structure, in place of one per job."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

Structure = tuple[tuple[str, ...], ...]


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper with a faster check of the jobs before the first one starts.

    The basic sweeper composes the config of every job to find mistakes early, 0.12 s each, and the launcher composes
    each again. Jobs that choose the same options of all config groups, and give values of the same types to the same
    keys, are composed alike, so one of them is enough: 300 seeds are one check. A mistake that only shows when a value
    is used is found by the job itself, as with the basic sweeper. Hydra has no option that limits the check.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes one job of each structure.

        Raises:
            HydraException: If one of them cannot be composed.
        """
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        first_jobs: dict[Structure, Sequence[str]] = {}
        is_group: dict[str, bool] = {}
        for overrides in batch:
            parsed = parser.parse_overrides(list(overrides))
            for key in {override.key_or_group for override in parsed} - is_group.keys():
                is_group[key] = bool(loader.get_group_options(key, results_filter=None))
            structure = tuple(_structure_of(override, is_group[override.key_or_group]) for override in parsed)
            first_jobs.setdefault(structure, overrides)
        super().validate_batch_is_legal(list(first_jobs.values()))


def _structure_of(override: Override, is_group: bool) -> tuple[str, ...]:
    """Returns the parts of an override that decide whether a config can be composed."""
    key = override.get_key_element()
    text = override.get_value_element_as_str()
    # The choice of a group decides which files are composed; Hydra's settings are checked against a schema.
    if is_group or override.key_or_group.startswith("hydra."):
        return (key, text)
    value = override.value()
    is_plain = value is None or isinstance(value, bool | int | float | str)
    # Collections and interpolations may hold anything.
    if not is_plain or "${" in str(value):
        return (key, text)
    return (key, type(value).__name__)
