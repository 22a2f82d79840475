"""An epoch of learning a text prompt (B12): `python benchmarks/prompt_epoch.py`, minutes on two cores.

7,000 stored features, 45 class names, the text tower of ViT-B/32 with random weights: as large as a round of GRIP
or AiR on RESISC45. Ours is a round as a run learns it; beside it the same steps by a plain loop, which sends whole
sentences of 77 tokens through the tower, one for each class, as CoOp's release does. The learned vectors are compared
first. A step's cost is nearly all the tower's, so B12b tells what the batch is worth: 16 images, as the papers have it,
against 512.
"""

import open_clip
import torch
import torch.nn.functional as F
from comparison import Row, alternate, measure_seconds, save_row
from lightning import Trainer
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot
from torch.optim import SGD

from lgclip.datasets.image_files import CLASSNAMES
from lgclip.encoder.base import LearningTowers
from lgclip.stages.runner import quiet
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.data import Batches, CachedImages, Rows
from lgclip.training.prompt_tuning.module import PromptRound, Prompts, rate
from lgclip.training.prompt_tuning.pool import Images
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt

IMAGES, LARGE, SMALL, STEPS = 7000, 512, 16, 14
NAMES = (CLASSNAMES / "resisc45.clip.txt").read_text(encoding="utf-8").splitlines()
TEMPERATURE = 0.01


def world() -> tuple[LearningTowers, Tensor, Tensor]:
    """The towers, and features with a guessed label each, which lie about their class's."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval().requires_grad_(False)
    towers = LearningTowers(
        model, SimpleTokenizer(), torch.device("cpu"), "fp32", 1 / TEMPERATURE, "random", "ViT-B-32"
    )
    labels = torch.arange(IMAGES) % len(NAMES)
    centres = normalize(torch.randn(len(NAMES), 512), dim=1)
    return towers, normalize(centres[labels] + 0.1 * torch.randn(IMAGES, 512), dim=1), labels


def batches_of(features: Tensor, labels: Tensor, size: int) -> Batches:
    """An epoch's steps."""

    def no_pixels(at: int) -> Image.Image:
        raise AssertionError(f"image {at} is not to be read")

    rows = Rows(torch.arange(IMAGES), one_hot(labels, len(NAMES)).bool(), torch.ones(IMAGES, dtype=torch.long))
    look = CachedImages(Images([str(at) for at in range(IMAGES)], features, no_pixels), None)
    return Batches({"real": rows}, {"real": look}, {"real": size}, epochs=1, seed=0)


def ours(towers: LearningTowers, batches: Batches, spec: PromptTuningConfig, steps: int) -> Tensor:
    """The vectors after some steps of a round."""
    prompt = TextPrompt(towers, TextContext(), NAMES)
    prompts = Prompts(prompt, None, torch.zeros(len(NAMES), 512), TEMPERATURE)
    batches.steps = steps
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(PromptRound(prompts, spec, (0.0, 1.0, 0.0)), datamodule=batches)
    return prompt.vectors.detach()


def plain(towers: LearningTowers, batches: Batches, spec: PromptTuningConfig, steps: int) -> Tensor:
    """The same by hand."""
    model, read = towers.model, batches.steps_of(0, 1)
    ids = towers.tokenizer([f"{'X ' * spec.tokens}{name}" for name in NAMES])
    vectors = nn.Parameter(TextPrompt(towers, TextContext(), NAMES).vectors.detach().clone())
    optimizer = SGD([vectors], momentum=spec.momentum, weight_decay=spec.weight_decay)
    words = model.token_embedding(ids)
    for step in range(steps):
        batch = read[step]
        own = vectors.expand(len(NAMES), -1, -1)
        tokens = torch.cat([words[:, :1], own, words[:, 1 + spec.tokens :]], dim=1) + model.positional_embedding
        encoded = model.ln_final(model.transformer(tokens, attn_mask=model.attn_mask))
        classes = normalize(encoded[torch.arange(len(NAMES)), ids.argmax(dim=1)] @ model.text_projection, dim=1)
        loss = F.cross_entropy(batch.inputs @ classes.T / TEMPERATURE, batch.sets.float().argmax(dim=1))
        optimizer.param_groups[0]["lr"] = spec.lr * rate(spec, step, steps, batches.steps_per_epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vectors.detach()


def main() -> None:
    """Measures and saves the rows."""
    quiet()
    towers, features, labels = world()
    spec = PromptTuningConfig(epochs=1, warmup_epochs=0, lr=0.002, batch_size=LARGE)
    large, small = (batches_of(features, labels, size) for size in (LARGE, SMALL))
    found, wanted = ours(towers, large, spec, STEPS), plain(towers, large, spec, STEPS)
    if large.steps_per_epoch != STEPS or not torch.allclose(found, wanted, rtol=0, atol=1e-5):
        raise SystemExit(f"the learned vectors are apart by {float((found - wanted).abs().max()):.0e}")
    apart = float((found - wanted).abs().max())
    equal, command = f"learned vectors, apart by {apart:.0e} at most", "python benchmarks/prompt_epoch.py"
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: ours(towers, large, spec, STEPS)),
        lambda: measure_seconds(lambda: plain(towers, large, spec, STEPS)),
        rounds=3,
    )
    what = f"an epoch of a text prompt, {IMAGES:,} features x {len(NAMES)} classes, ViT-B/32, batches of {LARGE}"
    save_row(
        Row(
            "B12a",
            what,
            "whole sentences through the tower, a plain loop",
            "",
            "s",
            measured,
            baselines,
            equal,
            command,
        )
    )
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: ours(towers, large, spec, STEPS)),
        lambda: measure_seconds(lambda: ours(towers, small, spec, STEPS)),
        rounds=3,
    )
    what, against = f"{STEPS} such steps with {LARGE} images", f"with {SMALL} images, of which an epoch has 438"
    save_row(Row("B12b", what, against, "", "s", measured, baselines, "as in B12a", command))


if __name__ == "__main__":
    main()
