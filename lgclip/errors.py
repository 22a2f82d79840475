"""One plain line for a user's mistake, a whole stack trace for a mistake of ours."""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

FULL = "HYDRA_FULL_ERROR"


def plain_errors(run: Callable[[], object]) -> Callable[[], object]:
    """Wraps an entry point: a mistake in the input is one message and exit status 1.

    Mistakes are `ValueError` (ours), Hydra's and OmegaConf's own errors and unusable files;
    everything else keeps its stack trace. `HYDRA_FULL_ERROR=1` keeps all of them.
    """

    @functools.wraps(run)
    def plain() -> object:
        if os.environ.get(FULL):
            return run()
        os.environ[FULL] = "1"  # Hydra then passes errors on instead of printing them
        try:
            return run()
        except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
            sys.stderr.write(f"error: {_message(error)}\n")
            sys.exit(1)
        finally:
            del os.environ[FULL]

    return plain


def _message(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError | OSError):
        return str(error.__cause__)
    # A loader's worker process wraps the message in its own stack trace.
    text = re.sub(r"^Caught \w+ in DataLoader .*\n[\w.]*(?:Error|Exception): ", "", str(error), flags=re.DOTALL)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        wanted = error.missing_cfg_file.rsplit("/", 1)[-1]
        return text + _did_you_mean(wanted, error.options or [])
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
