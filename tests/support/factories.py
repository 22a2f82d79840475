"""Creates small but real inputs of a run: models with random weights, a few images, a first run."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from lgclip.cli import main as cli

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier

NAMES = ("blue moon", "green ring", "red star")  # in the order of their folders
IMAGES_PER_CLASS = 4
SENTENCES = ("a photo of a {}.", "a drawing of a {}.", "a {} on grey paper.", "one small {}.")

SUPPORT = Path(__file__).parent

HUB_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_in_hub_cache(cache: Path, repo: str, revision: str = "main", kind: str = "model") -> Path:
    """Creates an empty snapshot of a repository in the hub's cache; returns its folder."""
    folder = cache / f"{kind}s--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / HUB_COMMIT
    (folder / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (folder / "refs" / revision).write_text(HUB_COMMIT)
    return snapshot


def make_image_folder(root: Path, names: Sequence[str] = NAMES, per_class: int = IMAGES_PER_CLASS) -> Path:
    """Creates an ImageFolder tree of colored patches, all different."""
    rng = np.random.default_rng(0)
    for name in names:
        folder = root / name.replace(" ", "_")
        folder.mkdir(parents=True)
        for i in range(per_class):
            patches = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(patches).resize((48, 40)).save(folder / f"{i}.png")
    return root


def make_encoder(folder: Path) -> Path:
    """Creates a two-tower open_clip model with random weights."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_tokenizer

    tokenizer: Any = clip_tokenizer([s.replace("{}", name) for s, name in product(SENTENCES, NAMES)], merges=60)
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1,
            "hf_tokenizer_name": ".",
        },
    }  # fmt: skip
    torch.manual_seed(0)
    model = CLIP(**config)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def make_diffuser(folder: Path) -> Path:
    """Creates a Stable Diffusion pipeline with random weights."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_tokenizer

    torch.manual_seed(1)
    tokenizer: Any = clip_tokenizer([s.replace("{}", name) for s, name in product(SENTENCES, NAMES)], merges=60)
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
            norm_num_groups=4,
        ),
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(steps_offset=1),
    }
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Sandbox:
    """Holds a data set, models with random weights and a store: all that a run needs.

    Attributes:
        synthetic_images: Root of `dataset=folder`.
        encoder: An open_clip folder.
        diffuser: A diffusers folder.
        store: The store.
    """

    synthetic_images: Path
    encoder: Path
    diffuser: Path
    store: Path

    def generate_overrides(self) -> list[str]:
        """Returns overrides that generate in this sandbox."""
        sentences = ",".join(f"'{sentence}'" for sentence in SENTENCES)
        return [
            "dataset=folder", f"dataset.root={self.synthetic_images}", "llm=template", f"llm.templates=[{sentences}]",
            f"diffuser.model={self.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=3",
            f"paths.store={self.store}", "trainer.accelerator=cpu",
            "text.alternatives=[]",  # counts are of one text side; test_text_side_runs.py evaluates several
        ]  # fmt: skip

    def evaluate_overrides(self) -> list[str]:
        """Returns overrides that evaluate in this sandbox."""
        return [*self.generate_overrides(), f"encoder.model={self.encoder}", "logger=none"]


@dataclass(frozen=True)
class FirstRun:
    """Holds the first run of a sandbox, its folder and its result."""

    sandbox: Sandbox
    folder: Path
    result: dict[str, Any]


def run_command(verb: str, *overrides: str) -> None:
    """Runs the console command `lgclip-VERB` in this process."""
    with patch.object(sys, "argv", [f"lgclip-{verb}", *overrides]):
        getattr(cli, verb)()


def evaluate_run(sandbox: Sandbox | Sequence[str], folder: Path, *overrides: str) -> dict[str, Any]:
    """Evaluates in a sandbox or with overrides and returns the result; later overrides win.

    The same run a second time is computed: that it can be copied is tested in test_finished_runs.py.
    """
    base_overrides = sandbox.evaluate_overrides() if isinstance(sandbox, Sandbox) else sandbox
    run_command("evaluate", "rerun=true", *base_overrides, f"hydra.run.dir={folder}", *overrides)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def computed_counts(result: dict[str, Any]) -> dict[str, int]:
    """Returns how many items each stage of a run added to the store; evaluation adds none."""
    return {stage["stage"]: stage["computed"] for stage in result["stages"] if stage["stage"] != "evaluation"}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file, and closes it."""
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_tree(root: Path) -> dict[str, bytes]:
    """Returns every file below a folder by its path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def read_store(root: Path) -> dict[str, bytes]:
    """Returns every file of a store except its cost logs, which contain times."""
    return {name: data for name, data in read_tree(root).items() if not name.endswith("costs.jsonl")}


def build_overrides(sandbox: Sandbox) -> list[str]:
    """Returns the overrides of a run in a sandbox, without its data set."""
    return [part for part in sandbox.evaluate_overrides() if not part.startswith(("dataset", "logger"))]


def build_in(sandbox: Sandbox, names: Any = NAMES, *overrides: str) -> "ImageClassifier":
    """Builds a classifier with the models of a sandbox."""
    import lgclip

    return lgclip.build(names, llm="template", overrides=[*build_overrides(sandbox), *overrides])
