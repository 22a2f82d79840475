"""open_clip's list of architectures and weights: what a name and a tag stand for, and whether they fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.encoder.files import HUB, PICKLES, SAFE, checkpoint_file, did_you_mean, hub_file
from lgclip.encoder.sources import Layout, Source
from lgclip.hub import commit_of
from lgclip.identity import weights_of

LAYOUT = Layout(
    config="open_clip_config.json",
    weights=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    weights_here=(
        "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    ),
)  # fmt: skip
QUICK = "-quickgelu"
"""Ending of the architectures that use QuickGELU, as OpenAI's weights were trained with."""


def architecture(model: str) -> dict[str, Any]:
    """Config of an architecture of open_clip, by its name.

    Raises:
        ValueError: If there is none of that name; the message lists those nearest to it.
    """
    from open_clip import get_model_config, list_models

    found = get_model_config(model)
    if found is None:
        near = did_you_mean(model, list_models())
        raise ValueError(
            f"encoder.model={model}: open_clip has no such architecture{near}; or give a folder, or {HUB}OWNER/NAME"
        )
    return found


def pretrained(model: str, tag: str) -> dict[str, Any]:
    """Where the weights of a tag lie, and the preprocessing that they were trained with.

    Args:
        model: Name of an architecture.
        tag: Name of weights for it.

    Raises:
        ValueError: If the architecture is unknown or has no such weights, or if the weights were
            trained with QuickGELU and it is without, or the other way round: the features would be
            wrong, and nothing would say so. The message names the architecture that fits.
    """
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    quick = bool(architecture(model).get("quick_gelu"))
    other = model.removesuffix(QUICK) if quick else model + QUICK
    found, beside = get_pretrained_cfg(model, tag), get_pretrained_cfg(other, tag)
    if found and bool(found.get("quick_gelu")) == quick:
        return found
    if beside and other != model and bool(beside.get("quick_gelu")) != quick:
        raise ValueError(
            f"encoder.model={model}: the weights {tag} were trained {'without' if quick else 'with'} QuickGELU; "
            f"use encoder.model={other}"
        )
    if found:
        raise ValueError(
            f"encoder.model={model}: its config and open_clip's list disagree on QuickGELU for the weights {tag}; "
            f"use their own config, encoder.model={HUB}{found['hf_hub'].strip('/')} encoder.pretrained=null"
        )
    tags = list_pretrained_tags_by_model(model)
    raise ValueError(
        f"encoder.pretrained={tag}: {model} has no such weights{did_you_mean(tag, tags)}; "
        f"it has {', '.join(tags) or 'none, so give encoder.checkpoint=FILE'}"
    )


@dataclass(frozen=True)
class Named(Source):
    """An architecture of open_clip with the weights of a tag, or of a checkpoint.

    Attributes:
        model: Name of the architecture.
        tag: Name of its weights. Beside a checkpoint it says how that was trained.
        revision: Branch, tag or commit of the hub repository that the tag points to.
        checkpoint: Weights on this machine, in place of the tag's.
    """

    model: str
    tag: str | None
    revision: str | None = None
    checkpoint: str | None = None

    def check(self, allow_pickle: bool) -> None:
        """Refuses what cannot be loaded, before anything is.

        Raises:
            ValueError: See `architecture`, `pretrained` and `checkpoint_file`.
        """
        architecture(self.model)
        if self.tag is not None:
            pretrained(self.model, self.tag)
        if self.checkpoint is not None:
            checkpoint_file(self.checkpoint, allow_pickle)
        elif self.tag is None:
            raise ValueError(
                f"encoder.model={self.model}: which weights? Give encoder.pretrained=TAG or encoder.checkpoint=FILE"
            )
        elif not pretrained(self.model, self.tag)["hf_hub"]:
            url = pretrained(self.model, self.tag)["url"]
            raise ValueError(
                f"encoder.pretrained={self.tag} is not on the hub; download {url}, give encoder.checkpoint"
            )

    def config(self) -> dict[str, Any]:
        preprocessing = {} if self.tag is None else pretrained(self.model, self.tag)
        return {"model_cfg": architecture(self.model), "preprocess_cfg": preprocessing}

    def weights(self, allow_pickle: bool) -> Path:
        if self.checkpoint is not None:
            return checkpoint_file(self.checkpoint, allow_pickle)
        repo, name = self._place()
        safe = next((name.removesuffix(suffix) + SAFE for suffix in PICKLES if name.endswith(suffix)), name)
        names = tuple(dict.fromkeys((safe, name))) if name else LAYOUT.weights
        return hub_file(repo, commit_of(repo, self.revision), names, allow_pickle)

    def repositories(self) -> list[tuple[str, str | None]]:
        return [] if self.checkpoint else [(self._place()[0], self.revision)]

    def stands_for(self) -> dict[str, str]:
        found = {"architecture": self.model}
        if self.checkpoint is None:
            found["weights"] = weights_of(self._place()[0], self.revision)
        return found

    def _place(self) -> tuple[str, str]:
        """Repository and file of the tag's weights; open_clip's list gives `OWNER/NAME/` or `OWNER/NAME/FILE`."""
        assert self.tag is not None
        repo, _, name = pretrained(self.model, self.tag)["hf_hub"].rpartition("/")
        return repo, name
