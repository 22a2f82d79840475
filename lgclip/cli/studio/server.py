"""Starts the page on this machine: environment, temporary folder, port and end; Gradio is imported here, not before."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.cli.studio.sessions import SessionStore

HOST = "127.0.0.1"
"""The only address that the command listens on: a page that writes files is for the person at this machine."""
DEFAULT_UPLOAD_MB = 20
_MAX_PIXELS = "100_000_000"
_SERVER_NAME = "GRADIO_SERVER_NAME"
"""Variable in which a Hugging Face Space sets the address that its page has to listen at."""


@dataclass(frozen=True)
class StudioOptions:
    """Holds the options of `lgclip studio`.

    Attributes:
        classifier: Folder, zip file or hub address of a classifier to start with; None starts with nothing.
        overrides: Overrides as of `lgclip build`.
        port: Port; None takes the first free one from 7860.
        opens_browser: Whether to open the page in the default browser.
        upload_mb: Maximum size of a photograph in megabytes.
    """

    classifier: str | None = None
    overrides: Sequence[str] = ()
    port: int | None = None
    opens_browser: bool = True
    upload_mb: float = DEFAULT_UPLOAD_MB


@dataclass(frozen=True)
class RunningStudio:
    """Holds a page that is being served.

    Attributes:
        url: Its address.
        folder: Folder of all uploads and files; removed at the end.
        store: The sessions of its tabs.
    """

    url: str
    folder: Path
    store: "SessionStore"


def studio_command(options: StudioOptions) -> Iterator[str]:
    """Runs `lgclip studio` until it is interrupted.

    Raises:
        ValueError: If Gradio is missing, a value is out of range, or there is no classifier.
        OSError: If the port is taken.
    """
    from lgclip.runtime.signals import Stopped, stoppable

    try:
        with stoppable(), running_studio(options) as studio:
            yield f"{studio.url} is ready; it answers on this machine alone, Ctrl-C ends it"
            threading.Event().wait()
    except Stopped:
        yield "closed; uploads and files of the page are removed"


@contextmanager
def running_studio(options: StudioOptions) -> Iterator[RunningStudio]:
    """Serves the page while the block runs.

    Raises:
        ValueError: As `studio_command`.
        OSError: As `studio_command`.
    """
    check_options(options)
    with _served_folder() as folder:
        classifier = _loaded(options.classifier, options.overrides)
        with _served(folder, classifier, options, HOST) as studio:
            yield studio


def run_space(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Serves the page of a Hugging Face Space until the process ends.

    Args:
        folder: Folder of the Space; a classifier in it is what every visitor starts with.
        overrides: Overrides as of `lgclip build`.

    Raises:
        ValueError: If Gradio is missing.
    """
    from lgclip.cli.studio.space import CLASSIFIER
    from lgclip.runtime.signals import stoppable

    saved = folder / CLASSIFIER
    port = os.environ.get("GRADIO_SERVER_PORT")
    options = StudioOptions(
        classifier=str(saved) if saved.exists() else None,
        overrides=overrides,
        port=None if port is None else int(port),
        opens_browser=False,
    )
    check_options(options)
    # A Space is reached through a proxy and sets the variable; anywhere else the page stays on this machine.
    host = os.environ.get(_SERVER_NAME, HOST)
    # A Space is stopped by a signal, which would leave the uploads behind.
    with stoppable(), _served_folder() as temporary:
        classifier = _loaded(options.classifier, options.overrides)
        with _served(temporary, classifier, options, host) as studio:
            print(f"{studio.url} is ready", flush=True)
            threading.Event().wait()


def check_options(options: StudioOptions) -> None:
    """Checks the options before anything heavy is imported.

    Raises:
        ValueError: If a value is out of range, or Gradio is missing.
    """
    if options.port is not None and not 1 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}: a port is 1 to 65535")
    if not 0 < options.upload_mb <= 1000:
        raise ValueError(f"--max-upload {options.upload_mb:g}: the limit is above 0 and at most 1000 MB")
    check_gradio()


def check_gradio() -> None:
    """Checks that Gradio is installed.

    Raises:
        ValueError: If it is not.
    """
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: install lgclip[studio]")


def _loaded(place: str | None, overrides: Sequence[str]) -> "ImageClassifier | None":
    if place is None:
        return None

    from lgclip.api import load

    return load(place, overrides=overrides)


@contextmanager
def _served_folder() -> Iterator[Path]:
    """Makes the folder of all uploads, and sets what Gradio reads from the environment when it is imported."""
    with TemporaryDirectory(prefix="lgclip-studio-") as name:
        folder = Path(name)
        settings = {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(folder / "uploads"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # The proxy of a network must not see requests to this machine.
            "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), HOST])),
        }
        from lgclip.datasets.image_decoding import MAX_PIXELS

        if MAX_PIXELS not in os.environ:
            settings[MAX_PIXELS] = _MAX_PIXELS.replace("_", "")
        before = {key: os.environ.get(key) for key in settings}
        os.environ.update(settings)
        try:
            yield folder
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextmanager
def _served(
    folder: Path, classifier: "ImageClassifier | None", options: StudioOptions, host: str
) -> Iterator[RunningStudio]:
    from lgclip.cli.studio.app import LAUNCH, build_page
    from lgclip.cli.studio.session import Limits
    from lgclip.cli.studio.sessions import SessionStore

    limits = Limits(upload_bytes=int(options.upload_mb * 1e6))
    store = SessionStore(folder / "sessions", options.overrides, limits, classifier)
    page: Any = build_page(store)
    page.queue(default_concurrency_limit=4, api_open=False)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=options.port,
            inbrowser=options.opens_browser,
            max_file_size=limits.upload_bytes,
            allowed_paths=[str(folder / "sessions")],
            prevent_thread_lock=True,
            **LAUNCH,
        )
        yield RunningStudio(url.rstrip("/"), folder, store)
    finally:
        page.close(verbose=False)
