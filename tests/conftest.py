"""Configures every test: checks annotated shapes and types, blocks the network, seeds randomness."""

import os
import warnings
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning, BeartypeDecorHintPep3119Exception
from hypothesis import settings

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
# `precision=auto` is then fp32 on every CPU, so that a test gives one result everywhere, also in processes of its own.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
settings.register_profile("same", deadline=None, derandomize=True, database=None)  # on a busy machine too
settings.load_profile("same")
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


def checked(function: Any) -> Any:
    """Returns `function` with checked arguments and result; an int is accepted where a float is annotated."""
    with warnings.catch_warnings():
        # OmegaConf's DictConfig derives from typing's old MutableMapping.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        try:
            return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
        except BeartypeDecorHintPep3119Exception:  # a protocol is for the static checker alone
            return function


# The fast tests check the types and shapes of every call; in the others that would take a quarter of the time.
if os.environ.get("LGCLIP_TEST_TYPES", "1") != "0":
    jaxtyping.install_import_hook(["lgclip"], f"{__name__}.checked")

from lgclip.runtime import garbage_collection, hub  # noqa: E402 - after the hook, which checks what is imported after it

# A command sets up the garbage collection of its process. In this one it would let garbage of one test show in another.
garbage_collection.collect_less = lambda: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that opens a browser."""
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolates store, working folder and answers of the hub, and seeds the random numbers."""
    monkeypatch.setenv("LGCLIP_HOME", str(tmp_path / "home"))
    # A finished run records what its process has asked of the hub, and a server of another test answers no more.
    monkeypatch.setattr(hub, "_ANSWERS", {})
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
