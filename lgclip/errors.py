"""One plain line for a user's mistake, a whole stack trace for a mistake of ours."""

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

FULL = "HYDRA_FULL_ERROR"


def plain_errors(run: Callable[[], object]) -> Callable[[], object]:
    """Wraps an entry point: a mistake in the input is one message and exit status 1.

    Mistakes are `ValueError` raised by this package, Hydra's and OmegaConf's own errors and unusable files;
    everything else keeps its stack trace. `HYDRA_FULL_ERROR=1` keeps all of them.
    """

    @functools.wraps(run)
    def plain() -> object:
        before = os.environ.get(FULL)
        if before == "1":
            return run()
        os.environ[FULL] = "1"  # Hydra then passes errors on instead of printing them
        try:
            return run()
        except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
            if isinstance(error, ValueError) and not _ours(error):
                raise
            sys.stderr.write(f"error: {_message(error)}\n")
            sys.exit(1)
        finally:
            if before is None:
                del os.environ[FULL]
            else:
                os.environ[FULL] = before

    return plain


def _ours(error: BaseException) -> bool:
    """Whether this package raised the error, here or in a loader's worker process."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parent
    return own in Path(frames[-1].filename).parents or str(error).startswith("Caught ValueError in DataLoader")


def _message(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError | OSError):
        return str(error.__cause__)
    # A loader's worker process wraps the message in its own stack trace.
    text = re.sub(r"^Caught \w+ in DataLoader .*\n[\w.]*(?:Error|Exception): ", "", str(error), flags=re.DOTALL)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        if not group or not error.options:
            return text
        return f"no {group}={wanted}: choose {', '.join(error.options)}" + _did_you_mean(wanted, error.options)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: add {error.full_key}=... to the command"
    unknown = re.search(r"Could not override '([^']+)'", text)
    cause = error.__cause__
    if unknown and isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        *path, key = unknown.group(1).split(".")
        known = [str(k) for k in cause.parent_node.keys()]  # noqa: SIM118
        return text + _did_you_mean(key, known, ".".join(path))
    return text


def _did_you_mean(wanted: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    return f"\nDid you mean '{prefix + '.' if prefix else ''}{close[0]}'?" if close else ""
