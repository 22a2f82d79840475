"""Looks up open_clip's architectures and pretrained weights, and checks that they match."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.encoder.weight_files import HUB, PICKLES, SAFE, checkpoint_file, did_you_mean, hub_file
from lgclip.encoder.weight_sources import Layout, Source
from lgclip.runtime.hub import commit_of
from lgclip.store.keys import weights_of

LAYOUT = Layout(
    config="open_clip_config.json",
    weights=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    local_weights=(
        "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    ),
)  # fmt: skip
QUICK = "-quickgelu"
"""Ending of the architectures that use QuickGELU, as OpenAI's weights were trained with."""


def architecture(model: str) -> dict[str, Any]:
    """Returns the config of an open_clip architecture.

    Raises:
        ValueError: If the name is unknown; the message lists similar ones.
    """
    from open_clip import get_model_config, list_models

    config = get_model_config(model)
    if config is None:
        near = did_you_mean(model, list_models())
        raise ValueError(
            f"encoder.model={model}: open_clip has no such architecture{near}; or give a folder, or {HUB}OWNER/NAME"
        )
    return config


def pretrained(model: str, tag: str) -> dict[str, Any]:
    """Returns the location of the weights of a tag, and the preprocessing that they were trained with.

    Args:
        model: Name of an architecture.
        tag: Tag of its weights.

    Raises:
        ValueError: If the architecture is unknown or has no such weights, or only one of weights and architecture uses
            QuickGELU: the features would be wrong without any error. The message names the matching architecture.
    """
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    # QuickGELU is x * sigmoid(1.702 x). It has no parameters, so weights load into either variant without an error.
    quick = bool(architecture(model).get("quick_gelu"))
    variant = model + QUICK
    trained = "with"
    if quick:
        variant = model.removesuffix(QUICK)
        trained = "without"
    entry = get_pretrained_cfg(model, tag)
    variant_entry = get_pretrained_cfg(variant, tag)
    if entry and bool(entry.get("quick_gelu")) == quick:
        return entry
    # Some architectures use QuickGELU without saying so in their name, and have no variant.
    if variant_entry and variant != model and bool(variant_entry.get("quick_gelu")) != quick:
        raise ValueError(
            f"encoder.model={model}: the weights {tag} were trained {trained} QuickGELU; use encoder.model={variant}"
        )
    if entry:
        raise ValueError(
            f"encoder.model={model}: its config and open_clip's list disagree on QuickGELU for the weights {tag}; "
            f"use their own config, encoder.model={HUB}{entry['hf_hub'].strip('/')} encoder.pretrained=null"
        )
    tags = list_pretrained_tags_by_model(model)
    raise ValueError(
        f"encoder.pretrained={tag}: {model} has no such weights{did_you_mean(tag, tags)}; "
        f"it has {', '.join(tags) or 'none, so give encoder.checkpoint=FILE'}"
    )


@dataclass(frozen=True)
class Named(Source):
    """Describes an open_clip architecture with the weights of a tag, or of a checkpoint.

    Attributes:
        model: Name of the architecture.
        tag: Tag of its weights. With a checkpoint it says how that was trained.
        revision: Branch, tag or commit of the hub repository that the tag points to.
        checkpoint: Local weights, used instead of the tag's.
    """

    model: str
    tag: str | None
    revision: str | None = None
    checkpoint: str | None = None

    def check(self, allow_pickle: bool) -> None:
        """Rejects what cannot be loaded, before anything is loaded.

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
        # Without a tag it is unknown how a checkpoint was trained, and open_clip's own defaults apply.
        preprocessing: dict[str, Any] = {}
        if self.tag is not None:
            preprocessing = pretrained(self.model, self.tag)
        return {"model_cfg": architecture(self.model), "preprocess_cfg": preprocessing}

    def weights(self, allow_pickle: bool) -> Path:
        if self.checkpoint is not None:
            return checkpoint_file(self.checkpoint, allow_pickle)
        repo, name = self._place()
        names = LAYOUT.weights
        if name:
            # open_clip's list still names pickles, though most repositories have the same weights as safetensors too.
            safe = next((name.removesuffix(suffix) + SAFE for suffix in PICKLES if name.endswith(suffix)), name)
            names = tuple(dict.fromkeys((safe, name)))
        return hub_file(repo, commit_of(repo, self.revision), names, allow_pickle)

    def repositories(self) -> list[tuple[str, str | None]]:
        if self.checkpoint:
            return []
        return [(self._place()[0], self.revision)]

    def stands_for(self) -> dict[str, str]:
        identity = {"architecture": self.model}
        # A checkpoint has its own field and hash.
        if self.checkpoint is None:
            identity["weights"] = weights_of(self._place()[0], self.revision)
        return identity

    def _place(self) -> tuple[str, str]:
        """Returns repository and file of the tag's weights; open_clip's list has `OWNER/NAME/` or `OWNER/NAME/FILE`."""
        assert self.tag is not None
        repo, _, name = pretrained(self.model, self.tag)["hf_hub"].rpartition("/")
        return repo, name
