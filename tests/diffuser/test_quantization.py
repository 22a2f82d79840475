"""Tests that a quantized pipeline generates nearly the same images, alone as in a batch, under another key."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from lgclip.diffuser import quantization
from lgclip.diffuser.pipeline import Diffuser
from lgclip.diffuser.quantization import check_device
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
PROMPTS = [
    Prompt(TargetClass(index, name), f"a photo of a {name}.", 0)
    for index, name in enumerate(("plain red circle", "striped blue square", "dotted green ring"))
]


needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None,
    reason="the extra quantization is not installed: torchao warns of its own source when it is compiled",
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchao be found; what uses this does not import it."""
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())


def small(**changes: Any) -> Diffuser:
    settings = {"steps": 4, "guidance": 3.0, "size": 64, "precision": "fp32", "channels_last": True}
    return Diffuser("tiny:diffuser", **{**settings, **changes})


def images(diffuser: Diffuser, prompts: list[Prompt]) -> UInt8[np.ndarray, "b h w 3"]:
    return diffuser.load(CPU).generate(prompts, 0, [0] * len(prompts)).pixels


@needs_torchao
@pytest.mark.slow
def test_images_are_nearly_the_same() -> None:
    exact = images(small(), PROMPTS).astype(int)
    quantized = images(small(quantization="int8"), PROMPTS).astype(int)
    apart = np.abs(quantized - exact)
    # Quantization has an effect, and it is far smaller than the difference of two images.
    assert 0 < apart.mean() < 2
    assert np.abs(exact[0] - exact[1]).mean() > 20


@needs_torchao
@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch() -> None:
    together = images(small(quantization="int8"), PROMPTS).astype(int)
    alone = images(small(quantization="int8"), PROMPTS[1:2]).astype(int)
    # As without quantization: another batch may round otherwise.
    assert np.abs(together[1] - alone[0]).max() <= 1


@pytest.mark.usefixtures("installed")
def test_quantized_images_have_their_own_key() -> None:
    assert "quantization" not in small().inputs()["diffuser"]  # pyright: ignore[reportOperatorIssue]
    assert small().inputs() != small(quantization="int8").inputs()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "int4"}, "diffuser.quantization=int4: choose int8, fp8, or null"),
        ({"quantization": "int8", "offload": "sequential"}, "set diffuser.offload=none or model"),
        ({"quantization": "fp8"}, "precision=fp32 is fp32 here; set precision=bf16"),
    ],
)
def test_invalid_settings_are_one_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_missing_package_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lgclip\[quantization\]'"):
        small(quantization="int8")


@pytest.mark.usefixtures("installed")
def test_device_without_fp8_is_an_error_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    diffuser = small(quantization="fp8", precision="bf16")
    monkeypatch.setattr(Diffuser, "pipeline", lambda self: pytest.fail("the weights are read"))
    with pytest.raises(ValueError, match=r"cpu does not multiply in fp8.* set diffuser.quantization=int8"):
        diffuser.load(CPU)


@pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((10, 0), True)])
def test_fp8_needs_a_recent_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], works: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 0)
    if works:
        check_device("fp8", device)
    else:
        with pytest.raises(ValueError, match=r"compute capability 8\.9 or newer"):
            check_device("fp8", device)


@needs_torchao
@pytest.mark.slow
def test_adapters_are_not_quantized() -> None:
    network = torch.nn.Sequential()
    network.add_module("linear", torch.nn.Linear(32, 32))
    network.add_module("lora_A", torch.nn.Linear(32, 16))
    network.add_module("odd", torch.nn.Linear(32, 10))

    quantization.quantize(SimpleNamespace(components={"unet": network}), "int8")
    kinds = {name: type(module.weight.data).__name__ for name, module in network.named_children()}
    assert kinds["linear"] != "Tensor"
    assert (kinds["lora_A"], kinds["odd"]) == ("Tensor", "Tensor")


@needs_torchao
@pytest.mark.slow
def test_pipeline_without_fitting_layers_is_an_error() -> None:
    pipeline = SimpleNamespace(components={"unet": torch.nn.Linear(10, 10)})
    with pytest.raises(ValueError, match="SimpleNamespace has no denoiser with linear layers"):
        quantization.quantize(pipeline, "int8")
