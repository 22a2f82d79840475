"""Provides W&B without an account."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Removes accounts, prompts for one, and writes to the user's home."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb's own" / name))

    def fail(*args: object) -> str:
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("builtins.input", fail)
    monkeypatch.setattr("getpass.getpass", fail)
    yield
    # A table's artifact leaves its temporary folder to the garbage collector, which says so, as an error, in
    # whatever test it then runs in.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
