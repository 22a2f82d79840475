"""Tests the denoising loss by hand, the trainable adapters, and the weights of noise levels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import diffusers, family_folder
from student_factories import ColorPatches
from torch import Tensor

from lgclip.diffuser.pipeline import Diffuser
from lgclip.training.lora.config import LoraTuning, TuningBatch
from lgclip.training.lora.module import DiffuserLora, rate, snr_weights
from lgclip.training.lora.task import Adaptation
from lgclip.training.lora.train import build_lora_module

CPU = torch.device("cpu")
SEEDS = [11, 12, 13]
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder("sd", tmp_path_factory.mktemp("sd") / "diffuser")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder("sdxl", tmp_path_factory.mktemp("sdxl") / "diffuser")


def lora_module(folder: Path, scheduler_options: dict[str, Any] | None = None, **values: Any) -> DiffuserLora:
    scheduler = {"scheduler": "DDPMScheduler", "scheduler_options": scheduler_options} if scheduler_options else {}
    diffuser = Diffuser(str(folder), size=SIZE, precision="fp32", **scheduler)
    return build_lora_module(Adaptation(LoraTuning(**values), diffuser, ColorPatches()), CPU)


def batch(captions: Sequence[int] = (0, 0, 0)) -> TuningBatch:
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return TuningBatch(0, pixels, list(captions), SEEDS, torch.tensor([1.0, 1.0, 0.5]), 3)


def opened(module: DiffuserLora) -> DiffuserLora:
    """Loads adapters that change the output."""
    for name, weight in module.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return module


def chance(seed: int) -> tuple[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.randint(1000, (), generator=generator)), torch.randn(2, 4, 16, 16, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_loss_matches_a_manual_computation(predicts: str, gamma: float | None, folder: Path) -> None:
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    tokens = pipeline.tokenizer(["a photo of an object"], padding="max_length", return_tensors="pt").input_ids
    words = pipeline.text_encoder(tokens)[0]
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected = []
    for pixels, seed in zip(batch().pixels, SEEDS, strict=True):
        time, (first, noise) = chance(seed)
        posterior = pipeline.vae.encode(pixels[None]).latent_dist
        image = (posterior.mean + posterior.std * first) * pipeline.vae.config.scaling_factor
        a = alphas[time] ** 0.5
        b = (1 - alphas[time]) ** 0.5
        predicted_noise = pipeline.unet(a * image + b * noise, time, words).sample
        target = {"epsilon": noise, "v_prediction": a * noise - b * image, "sample": image}[predicts]
        snr = alphas[time] / (1 - alphas[time])
        limited = min(snr, 5.0)
        weight = {"epsilon": limited / snr, "v_prediction": limited / (snr + 1), "sample": limited}[predicts]
        expected.append((1 if gamma is None else weight) * float((predicted_noise - target).square().mean()))
    actual = lora_module(folder, {"prediction_type": predicts}, min_snr=gamma)
    np.testing.assert_allclose(actual.losses(batch()).numpy(), expected, rtol=2e-4)


@torch.no_grad()
def test_sdxl_gets_size_and_pooled_embeddings(sdxl: Path) -> None:
    pipeline: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl)
    words, _, pooled, _ = pipeline.encode_prompt("a photo of an object", do_classifier_free_guidance=False)
    times = pipeline._get_add_time_ids(
        (SIZE, SIZE), (0, 0), (SIZE, SIZE), torch.float32, pipeline.text_encoder_2.config.projection_dim
    )
    actual = lora_module(sdxl)
    time, (first, noise) = chance(SEEDS[0])
    posterior = pipeline.vae.encode(batch().pixels[:1]).latent_dist
    image = (posterior.mean + posterior.std * first) * pipeline.vae.config.scaling_factor
    noisy = actual.noising.add_noise(image, noise[None], torch.tensor([time]))
    predicted_noise = pipeline.unet(
        noisy, time, words, added_cond_kwargs={"text_embeds": pooled, "time_ids": times}
    ).sample
    torch.testing.assert_close(
        actual.losses(batch())[0], (predicted_noise - noise).square().mean(), rtol=1e-4, atol=1e-6
    )


@torch.no_grad()
def test_new_adapters_change_nothing(folder: Path) -> None:
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    noisy = torch.randn(2, 4, 16, 16)
    words = torch.randn(2, 5, 16)
    base = pipeline.unet(noisy, 300, words).sample
    actual = lora_module(folder)
    unet: Any = actual.unet
    assert torch.equal(unet(noisy, 300, words).sample, base)
    unet = opened(actual).unet
    assert (unet(noisy, 300, words).sample - base).abs().max() > 1e-3


def test_only_adapters_are_trainable(folder: Path) -> None:
    actual = lora_module(folder, rank=3, alpha=6)
    named = dict(actual.named_parameters())
    tuned = {name: weight for name, weight in named.items() if weight.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in tuned)
    linear = [name for name in named if name.endswith("base_layer.weight")]
    assert sum(map(torch.Tensor.numel, tuned.values())) == sum(3 * sum(named[name].shape) for name in linear)
    assert {name.rpartition(".base_layer")[0].rpartition("attn")[2][2:] for name in linear} == {
        "to_q", "to_k", "to_v", "to_out.0"
    }  # fmt: skip
    opened(actual).losses(batch()).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tuned.values())
    assert all(named[name].grad is None for name in named.keys() - tuned.keys())


def test_gradient_checkpointing_is_exact(folder: Path) -> None:
    gradients = []
    for twice in (False, True):
        actual = opened(lora_module(folder, gradient_checkpointing=twice))
        actual.losses(batch()).sum().backward()
        gradients.append([weight.grad for weight in actual.unet.parameters() if weight.requires_grad])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_losses_do_not_depend_on_the_batch(folder: Path) -> None:
    actual = opened(lora_module(folder))
    full_batch = batch()
    alone = [
        actual.losses(
            full_batch._replace(pixels=full_batch.pixels[index : index + 1], captions=[0], seeds=[SEEDS[index]])
        )[0]
        for index in range(3)
    ]
    torch.testing.assert_close(torch.stack(alone), actual.losses(full_batch), rtol=1e-5, atol=1e-6)


def test_initial_weights_depend_on_the_seed(folder: Path) -> None:
    before = torch.random.get_rng_state()
    first = lora_module(folder)
    again = lora_module(folder)
    reseeded = lora_module(folder, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's chance is touched"
    for name, weight in first.layers().items():
        assert torch.equal(weight, again.layers()[name])
        assert torch.equal(weight, reseeded.layers()[name]) == (".up." in name)
        assert (weight == 0).all() == (".up." in name)


def test_half_precision_keeps_adapters_in_fp32(folder: Path) -> None:
    diffuser = Diffuser(str(folder), size=SIZE)
    actual = build_lora_module(Adaptation(LoraTuning(precision="bf16"), diffuser, ColorPatches()), CPU)
    kinds = {weight.requires_grad: weight.dtype for weight in actual.unet.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert {weight.dtype for weight in actual.vae.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = actual.losses(batch())
    half.sum().backward()
    torch.testing.assert_close(half, lora_module(folder).losses(batch()), rtol=0.05, atol=0.01)


def test_noise_level_weights_match_numpy() -> None:
    alphas = np.array([0.999, 0.9, 0.5, 0.01, 0.0], dtype=np.float32)
    snr = alphas / (1 - alphas)
    expected = {
        "epsilon": np.append(np.minimum(snr, 5)[:-1] / snr[:-1], 1),
        "v_prediction": np.minimum(snr, 5) / (snr + 1),
        "sample": np.minimum(snr, 5),
    }
    for predicts, weights in expected.items():
        np.testing.assert_allclose(snr_weights(torch.tensor(alphas), predicts, 5.0), weights, rtol=1e-5)
        assert (snr_weights(torch.tensor(alphas), predicts, None) == 1).all()


def test_zero_terminal_snr_matches_the_scheduler(folder: Path) -> None:
    actual = lora_module(folder, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert float(actual.noising.alphas_cumprod[-1]) == 0
    assert actual.losses(batch()).isfinite().all()


def test_learning_rate_follows_its_schedule() -> None:
    tuning = LoraTuning(steps=10, warmup=4)
    shares = [rate(tuning, step) for step in range(10)]
    expected = [0.25, 0.5, 0.75, 1, *(0.5 * (1 + np.cos(np.pi * np.arange(6) / 6)))]
    np.testing.assert_allclose(shares, expected)
    assert [rate(replace(tuning, schedule="constant"), step) for step in (3, 4, 9)] == [1, 1, 1]


def test_unknown_target_modules_are_rejected(folder: Path) -> None:
    with pytest.raises(ValueError, match="the U-Net has no layer 'to_x'"):
        lora_module(folder, targets=["to_q", "to_x"])
    with pytest.raises(ValueError, match="a U-Net that predicts flow"):
        lora_module(folder, {"prediction_type": "flow"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, r"method\.rank=0: it must be an integer, at least 1"),
        ({"alpha": 0.0}, r"method\.alpha=0\.0: it must be above 0, or null for the rank"),
        ({"lr": float("nan")}, r"method\.lr=nan"),
        ({"lr": float("inf")}, r"method\.lr=inf"),
        ({"steps": True}, r"method\.steps=True"),
        ({"min_snr": 0.0}, r"method\.min_snr=0\.0: it must be above 0, or null for equal weights"),
        ({"prior_weight": -1.0}, r"method\.prior_weight=-1\.0"),
        ({"captions": "labels"}, r"method\.captions=labels: choose sentence, none, class_list"),
        ({"schedule": "steps"}, r"method\.schedule=steps: choose cosine, constant"),
        ({"precision": "fp8"}, r"method\.precision=fp8: choose auto, fp32, bf16, fp16"),
        ({"targets": ()}, r"method\.targets=\[\]: name layers"),
        ({"batch_size": 2, "accumulate": 3}, r"method\.accumulate=3: a step has 2 images to divide"),
        ({"sentence": "a {name}"}, r"the only placeholder it may have is \{context\}"),
    ],
)
def test_invalid_values_are_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraTuning(**values)
