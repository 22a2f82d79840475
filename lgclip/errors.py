"""One plain line for a user's mistake, a whole stack trace for a mistake of ours."""

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lgclip.credentials import KeyInConfigError, refuse_on_command_line
from lgclip.shown import shown
from lgclip.stopping import Stopped, say, stoppable
from lgclip.usage import HELP, usage
from lgclip.whole import WAY_OUT, WriteError, refusal

FULL = "HYDRA_FULL_ERROR"
_OURS = "LGCLIP_PLAIN_ERRORS"  # beside it: it was set here, not by the user; the other devices inherit both

_QUOTES = (
    "A value with letters beyond a-z, or with one of ,=:{}[]()' in it, needs quotes of its own inside those of the "
    """shell: "paths.store='/data/my störe'\""""
)


def plain_errors(run: Callable[[], object]) -> Callable[[], object]:
    """Wraps an entry point: a mistake in the input is one message and exit status 1.

    Mistakes are `ValueError` raised by this package, Hydra's and OmegaConf's own errors and unusable files;
    everything else keeps its stack trace. `HYDRA_FULL_ERROR=1` keeps all of them. SIGINT and SIGTERM end it with
    one line and exit status 130 or 143. `--help` alone is answered here, see `usage`.
    """

    @functools.wraps(run)
    def plain() -> object:
        if len(sys.argv) == 2 and sys.argv[1] in HELP:
            script = sys.modules[run.__module__]
            return print(usage(Path(str(script.__file__)), str(script.__doc__)))
        try:
            refuse_on_command_line(sys.argv[1:])  # Hydra's own errors would repeat the key
            with stoppable():
                return _plainly(run)
        except KeyInConfigError as error:
            sys.exit(f"error: {error}")
        except Stopped as stopped:
            say(stopped)
            sys.exit(stopped.code)

    return plain


def _plainly(run: Callable[[], object]) -> object:
    before = {name: os.environ.get(name) for name in (FULL, _OURS)}
    if before[FULL] == "1" and before[_OURS] is None:
        return run()
    os.environ |= dict.fromkeys(before, "1")  # Hydra then passes errors on instead of printing them
    try:
        return run()
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if isinstance(error, ValueError) and not _ours(error):
            raise
        sys.stderr.write(f"error: {shown(_message(error))}\n")
        sys.exit(1)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ours(error: BaseException) -> bool:
    """Whether this package raised the error, here or in a loader's worker process."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parent
    return own in Path(frames[-1].filename).parents or str(error).startswith("Caught ValueError in DataLoader")


def _message(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError | OSError):
        return str(error.__cause__)
    if isinstance(error, OSError) and not isinstance(error, WriteError) and (reason := refusal(error)):
        return f"{error.filename or 'a file'}: {reason}; {WAY_OUT}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_config(error)
    # A loader's worker process wraps the message in its own stack trace.
    return re.sub(r"^Caught \w+ in DataLoader .*\n[\w.]*(?:Error|Exception): ", "", str(error), flags=re.DOTALL)


def _of_config(error: HydraException | OmegaConfBaseException) -> str:
    """What is wrong with a config or a command line, with what would be right."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        if not group or not error.options:
            return text
        return f"no {group}={wanted}: choose {', '.join(error.options)}" + _did_you_mean(wanted, error.options)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: add {error.full_key}=... to the command"
    if isinstance(error, OverrideParseException):
        return f"{text}\n{_QUOTES}"
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
