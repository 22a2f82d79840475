"""Prints one line for a user's mistake, and a full stack trace for an internal error."""

import functools
import io
import logging.config
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from lgclip.cli.help import HELP, usage
from lgclip.runtime import garbage_collection
from lgclip.runtime.api_keys import refuse_redirection
from lgclip.runtime.config_errors import describe_config_error
from lgclip.runtime.secrets import KeyInConfigError, guard_environment, refuse_on_command_line
from lgclip.runtime.signals import Stopped, print_stop, stoppable
from lgclip.runtime.terminal import print_loading, sanitized
from lgclip.runtime.yaml_checks import UnsafeYamlError, check_config_folders
from lgclip.store.atomic import WAY_OUT, WriteError, refusal

# When this is imported, and not when a script starts: a launcher's processes compose configs without its main function.
guard_environment()

FULL = "HYDRA_FULL_ERROR"
_MISTAKES = (ValueError, OSError, HydraException, OmegaConfBaseException)
_PLUGINS = {"instantiate_launcher": "hydra.launcher", "instantiate_sweeper": "hydra.sweeper"}
"""Config group of what each function of Hydra builds."""
_OURS = "LGCLIP_PLAIN_ERRORS"  # next to it: it was set here, not by the user; the other devices inherit both


def plain_errors(run: Callable[[], object]) -> Callable[[], object]:
    """Wraps an entry point, so that a mistake in the input gives one message and exit status 1.

    Mistakes are `ValueError` raised by this package, Hydra's and OmegaConf's own errors and unusable files;
    everything else keeps its stack trace. `HYDRA_FULL_ERROR=1` keeps all of them. SIGINT and SIGTERM end with
    one line and exit status 130 or 143. A single `--help` is answered here, see `usage`.
    """

    @functools.wraps(run)
    def plain() -> object:
        if len(sys.argv) == 2 and sys.argv[1] in HELP:
            script = sys.modules[run.__module__]
            return print(usage(Path(str(script.__file__)), str(script.__doc__)))
        garbage_collection.collect_less()
        print_loading("the config and the data set")
        try:
            refuse_on_command_line(sys.argv[1:])  # Hydra's own errors would repeat the key
            # A script that Python was given as text has no file.
            script = getattr(sys.modules[run.__module__], "__file__", None) or ""
            check_config_folders(sys.argv[1:], Path(script))
            with stoppable():
                return _plainly(run)
        except (KeyInConfigError, UnsafeYamlError) as error:
            sys.exit(f"error: {sanitized(str(error))}")
        except Stopped as stopped:
            print_stop(stopped)
            sys.exit(stopped.code)

    return plain


def _plainly(run: Callable[[], object]) -> object:
    before = {name: os.environ.get(name) for name in (FULL, _OURS)}
    # Set by the user, not by this function in a parent process: they want the stack trace.
    if before[FULL] == "1" and before[_OURS] is None:
        return run()
    os.environ |= dict.fromkeys(before, "1")  # Hydra then passes errors on instead of printing them
    try:
        return run()
    # Of any type: Hydra's plugins raise their own.
    except Exception as error:
        _exit_with(error)
    # A sweep runs its jobs in this process, and tests call the scripts in theirs: nothing may be left behind.
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def plain_job(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a job of an entry point, so that Hydra prints no line of its own before the message.

    The jobs of a sweep pass their errors on: the sweep decides whether it continues.
    """

    @functools.wraps(run)
    def plain(*args: Any) -> Any:
        # Where the user asked for the stack trace, Hydra prints it.
        if os.environ.get(_OURS) is None or HydraConfig.get().mode is not RunMode.RUN:
            return _guarded(run, *args)
        try:
            return _guarded(run, *args)
        except _MISTAKES as error:
            _exit_with(error)

    return plain


def _guarded(run: Callable[..., Any], *args: Any) -> Any:
    """Runs a job, unless its config sends keys elsewhere; a config can remove the callback that checks this before."""
    refuse_redirection()
    return run(*args)


def _exit_with(error: Exception) -> NoReturn:
    """Prints the message of a user's mistake and exits; raises every other error again."""
    problem = _problem_of_setup(error)
    if problem is None and not _is_mistake(error):
        raise error
    sys.stderr.write(f"error: {sanitized(problem or message_of(error))}\n")
    sys.exit(1)


def _is_mistake(error: Exception) -> bool:
    # First, because some of OmegaConf's errors are ValueErrors too.
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    return isinstance(error, OSError) or (isinstance(error, ValueError) and _ours(error))


def _problem_of_setup(error: Exception) -> str | None:
    """Describes a failure of the logging or the launcher that the config names; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.filename == logging.config.__file__ for frame in frames):
        # The error itself names the entry, and its cause what is wrong with it.
        reason = f": {_single_line(error.__cause__)}" if error.__cause__ else ""
        return f"hydra.job_logging or hydra.hydra_logging: {_single_line(error)}{reason}"
    # The innermost first: the sweeper builds the launcher.
    for frame in reversed(frames):
        place = Path(frame.filename).as_posix()
        if place.endswith("hydra/core/plugins.py") and frame.name in _PLUGINS and type(error) is RuntimeError:
            return f"{_PLUGINS[frame.name]}: {_single_line(error)}; choose a part of Hydra or of an installed plugin"
    # A cluster's launcher without its cluster. Failed jobs are errors of other types.
    if type(error) is RuntimeError and "submitit" in Path(frames[-1].filename).parts:
        return f"hydra.launcher: {_single_line(error)}"
    return None


def _single_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _ours(error: BaseException) -> bool:
    """Checks whether this package raised the error, here or in a loader's worker process."""
    # A ValueError out of torch or NumPy is more likely a mistake of this package than of the user, so it keeps its
    # stack trace. A worker process passes on the text of an error only, so its origin is unknown.
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    return package in Path(frames[-1].filename).parents or str(error).startswith("Caught ValueError in DataLoader")


def reason_of(error: Exception) -> Exception:
    """Returns the mistake that a part of the config has reported while Hydra built it; else the error itself."""
    cause = error.__cause__
    return cause if isinstance(error, InstantiationException) and isinstance(cause, ValueError | OSError) else error


def message_of(error: Exception) -> str:
    """Returns the message of an error for the user: of a mistake what is wrong and how to mend it."""
    if reason_of(error) is not error:
        return str(reason_of(error))
    # A WriteError has been through `refusal` already.
    if isinstance(error, OSError) and not isinstance(error, WriteError) and (reason := refusal(error)):
        return f"{error.filename or _file_of(error) or 'a file'}: {reason}; {WAY_OUT}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return describe_config_error(error)
    # A loader's worker process wraps the message in its own stack trace.
    return re.sub(r"^Caught \w+ in DataLoader .*\n[\w.]*(?:Error|Exception): ", "", str(error), flags=re.DOTALL)


def _file_of(error: OSError) -> str | None:
    """Returns the name of the file that was written when the system refused it; None if unknown.

    An error of a write names no file, because the system knows only the descriptor. The file is open in the function
    that writes to it.
    """
    name: str | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(getattr(value, "name", None), str):
                name = str(value.name)  # pyright: ignore[reportAttributeAccessIssue]
    return name
