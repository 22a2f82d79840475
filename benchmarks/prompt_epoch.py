"""Measures an epoch of prompt tuning (B12): `python benchmarks/prompt_epoch.py`, minutes on two cores.

7,000 stored features, 45 class names, the text tower of ViT-B/32 with random weights: the size of a round of GRIP or
AiR on RESISC45. A round as a run trains it is compared with the same steps by a plain loop, which sends full sentences
of 77 tokens through the tower, one for each class, as CoOp's release does. The learned vectors are compared first.
B12b compares batch sizes: the cost of a step is almost only the tower's, so 512 images cost as much as the 16 of the
papers.
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

IMAGES = 7000
LARGE, SMALL = 512, 16
"""Batch sizes."""

STEPS = 14
"""Steps of an epoch with large batches."""

NAMES = (CLASSNAMES / "resisc45.clip.txt").read_text(encoding="utf-8").splitlines()
TEMPERATURE = 0.01


def simulate_features() -> tuple[LearningTowers, Tensor, Tensor]:
    """Returns the towers, features scattered around class centers, and their pseudo-labels."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval().requires_grad_(False)
    towers = LearningTowers(
        model, SimpleTokenizer(), torch.device("cpu"), "fp32", 1 / TEMPERATURE, "random", "ViT-B-32"
    )
    labels = torch.arange(IMAGES) % len(NAMES)
    centers = normalize(torch.randn(len(NAMES), 512), dim=1)
    return towers, normalize(centers[labels] + 0.1 * torch.randn(IMAGES, 512), dim=1), labels


def build_batches(features: Tensor, labels: Tensor, size: int) -> Batches:
    """Returns the batches of one epoch."""

    def reject_pixels(index: int) -> Image.Image:
        raise AssertionError(f"image {index} must not be read")

    rows = Rows(torch.arange(IMAGES), one_hot(labels, len(NAMES)).bool(), torch.ones(IMAGES, dtype=torch.long))
    images = CachedImages(Images([str(index) for index in range(IMAGES)], features, reject_pixels), None)
    return Batches({"real": rows}, {"real": images}, {"real": size}, epochs=1, seed=0)


def train_by_run(towers: LearningTowers, batches: Batches, config: PromptTuningConfig, steps: int) -> Tensor:
    """Returns the vectors after `steps` steps of a run's round."""
    prompt = TextPrompt(towers, TextContext(), NAMES)
    prompts = Prompts(prompt, None, torch.zeros(len(NAMES), 512), TEMPERATURE)
    batches.steps = steps
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(PromptRound(prompts, config, (0.0, 1.0, 0.0)), datamodule=batches)
    return prompt.vectors.detach()


def train_by_plain_loop(towers: LearningTowers, batches: Batches, config: PromptTuningConfig, steps: int) -> Tensor:
    """Returns the vectors after the same steps of a plain loop."""
    model = towers.model
    step_batches = batches.steps_of(0, 1)
    ids = towers.tokenizer([f"{'X ' * config.tokens}{name}" for name in NAMES])
    vectors = nn.Parameter(TextPrompt(towers, TextContext(), NAMES).vectors.detach().clone())
    optimizer = SGD([vectors], momentum=config.momentum, weight_decay=config.weight_decay)
    embeddings = model.token_embedding(ids)
    for step in range(steps):
        batch = step_batches[step]
        context = vectors.expand(len(NAMES), -1, -1)
        tokens = (
            torch.cat([embeddings[:, :1], context, embeddings[:, 1 + config.tokens :]], dim=1)
            + model.positional_embedding
        )
        encoded = model.ln_final(model.transformer(tokens, attn_mask=model.attn_mask))
        classes = normalize(encoded[torch.arange(len(NAMES)), ids.argmax(dim=1)] @ model.text_projection, dim=1)
        loss = F.cross_entropy(batch.inputs @ classes.T / TEMPERATURE, batch.sets.float().argmax(dim=1))
        optimizer.param_groups[0]["lr"] = config.lr * rate(config, step, steps, batches.steps_per_epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vectors.detach()


def main() -> None:
    """Measures and saves the rows."""
    quiet()
    towers, features, labels = simulate_features()
    config = PromptTuningConfig(epochs=1, warmup_epochs=0, lr=0.002, batch_size=LARGE)
    large, small = (build_batches(features, labels, size) for size in (LARGE, SMALL))
    vectors = train_by_run(towers, large, config, STEPS)
    expected = train_by_plain_loop(towers, large, config, STEPS)
    difference = float((vectors - expected).abs().max())
    if large.steps_per_epoch != STEPS or not torch.allclose(vectors, expected, rtol=0, atol=1e-5):
        raise SystemExit(f"the learned vectors differ by up to {difference:.0e}")
    equality = f"learned vectors, maximum difference {difference:.0e}"
    command = "python benchmarks/prompt_epoch.py"
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: train_by_run(towers, large, config, STEPS)),
        lambda: measure_seconds(lambda: train_by_plain_loop(towers, large, config, STEPS)),
        rounds=3,
    )
    task = f"one epoch of prompt tuning, {IMAGES:,} features x {len(NAMES)} classes, ViT-B/32, batches of {LARGE}"
    save_row(
        Row(
            "B12a",
            task,
            "plain loop, full sentences through the tower",
            "",
            "s",
            measured,
            baselines,
            equality,
            command,
        )
    )
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: train_by_run(towers, large, config, STEPS)),
        lambda: measure_seconds(lambda: train_by_run(towers, small, config, STEPS)),
        rounds=3,
    )
    task = f"{STEPS} steps of B12a with batches of {LARGE}"
    reference = f"batches of {SMALL}, of which an epoch has 438"
    save_row(Row("B12b", task, reference, "", "s", measured, baselines, "as B12a", command))


if __name__ == "__main__":
    main()
