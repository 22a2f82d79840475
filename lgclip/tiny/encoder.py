"""Trains `encoder=tiny`: a small CLIP in open_clip's format, with CLIP's own loss."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from lgclip.tiny.corpus import Corpus
from lgclip.tiny.recipe import Recipe, distinct_kinds
from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_ids, clip_tokenizer

MEAN = STD = (0.5, 0.5, 0.5)
CAPTIONS_PER_IMAGE = 4


def augment(images: UInt8[Tensor, "b 3 h w"], share: slice = slice(None)) -> Float[Tensor, "s 3 h w"]:
    """Crops, shifts, blurs, darkens and adds noise to each image by its own random amount; returns [-1, 1].

    Args:
        images: A batch; random amounts are sampled for all of it.
        share: Rows of it to return.
    """
    n = len(images)
    device = images.device

    def amount(*shape: int) -> Float[Tensor, "s ..."]:
        # For all images, of which the shard is selected: equal amounts on any number of devices.
        return torch.rand(n, *shape, device=device)[share]

    synthetic = images[share].float() / 127.5 - 1
    synthetic = torch.lerp(synthetic, gaussian_blur(synthetic, [5, 5], [1.4, 1.4]), amount(1, 1, 1))
    # The zoom is the side of the window that is cut out, as a fraction of the image's; above 1 it shows the border.
    zoom = 0.6 + 0.45 * amount()
    shift = (1 - zoom)[:, None] * (2 * amount(2) - 1) * 0.6
    zero = torch.zeros_like(zoom)
    # One affine map per image, [[zoom, 0, x], [0, zoom, y]]: torchvision's crops take one window for a whole batch.
    first_row = torch.stack([zoom, zero, shift[:, 0]], 1)
    second_row = torch.stack([zero, zoom, shift[:, 1]], 1)
    window = torch.stack([first_row, second_row], 1)
    grid = F.affine_grid(window, list(synthetic.shape), align_corners=False)
    synthetic = F.grid_sample(synthetic, grid, padding_mode="border", align_corners=False)
    contrast = 0.75 + 0.4 * amount(1, 1, 1)
    brightness = 0.2 * (2 * amount(1, 1, 1) - 1)
    grain = 0.1 * amount(1, 1, 1) * torch.randn(images.shape, device=device)[share]
    return (synthetic * contrast + brightness + grain).clamp(-1, 1)


class TinyEncoder(Recipe):
    """Trains a CLIP with two small towers (arXiv:2103.00020, sec. 2.3); every batch holds distinct classes.

    Args:
        corpus: Captioned images.
        width: Width of the vision tower; its heads are 32 wide.
        layers: Blocks of the vision tower.
        text_layers: Blocks of the text tower.
        **schedule: See `Recipe`.
    """

    def __init__(
        self, corpus: Corpus, *, width: int = 128, layers: int = 6, text_layers: int = 2, **schedule: float
    ) -> None:
        super().__init__(corpus, **schedule)  # pyright: ignore[reportArgumentType]
        captions = corpus.captions(CAPTIONS_PER_IMAGE)
        self.tokenizer: Any = clip_tokenizer(chain.from_iterable(captions))
        self.tokens = clip_ids(self.tokenizer, captions)
        self.config = {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": 64,
                "patch_size": 8,
                "width": width,
                "head_width": 32,
                "layers": layers,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(self.tokenizer),
                "width": 128,
                "heads": 4,
                "layers": text_layers,
                "hf_tokenizer_name": ".",  # lies in the model's own folder
            },
        }
        self.model = CLIP(**self.config, output_dict=True)
        self.clip_loss = ClipLoss()

    def choose(self, generator: torch.Generator) -> Int[Tensor, " b"]:
        return distinct_kinds(self.corpus, self.batch_size, generator)

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        n = len(indices)
        with torch.autocast(self.device.type, enabled=False):  # crops and blurs stay in fp32
            images = augment(self.corpus.images[indices].to(self.device), self.share)
        variant = torch.randint(CAPTIONS_PER_IMAGE, (n,))
        output = self.model(images, self.tokens[indices, variant][self.share].to(self.device))
        for side in ("image_features", "text_features"):
            output[side] = self._of_all(output[side], n)
        with torch.no_grad():
            logits = output["image_features"].float() @ output["text_features"].float().T
            self.note("accuracy", (logits.argmax(1) == torch.arange(n, device=logits.device)).float().mean())
        return self.clip_loss(**output)  # of the whole batch, on every device

    def _of_all(self, local_features: Float[Tensor, "s d"], n: int) -> Float[Tensor, "{n} d"]:
        """Gathers the features of the global batch from all devices: each image is compared with all.

        Gathering has a gradient: that of a feature is the sum over the devices, each of which has the whole loss, and
        their mean over the devices is then that of one device.
        """
        world = self.trainer.world_size
        if world == 1:
            return local_features
        most = -(-n // world)  # shards differ by one image, and only tensors of equal size can be gathered
        gathered = self.all_gather(F.pad(local_features, (0, 0, 0, most - len(local_features))), sync_grads=True)
        assert isinstance(gathered, Tensor)
        # From (rank, place) to (place, rank): image i is on rank i mod world, so this is the batch's order. The
        # padding of the shorter shards comes last.
        return gathered.transpose(0, 1).flatten(0, 1)[:n]

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)  # a temperature of at least 0.01, as in the paper

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "model_cfg": self.config,
            "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        half = {k: v.detach().half().contiguous().cpu() for k, v in self.model.state_dict().items()}
        save_file(half, folder / "open_clip_model.safetensors")
        self.tokenizer.save_pretrained(folder)
