"""Locates the weights of timm's architectures: those of its list, a checkpoint, or those of a Python package."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgclip.encoder.packaged_weights import PackagedWeights, names_in_order, packaged_weights
from lgclip.encoder.weight_comparison import model_shapes, stored_shapes
from lgclip.encoder.weight_files import HUB, checkpoint_file, did_you_mean, hub_file
from lgclip.encoder.weight_sources import Layout, Source
from lgclip.runtime.hub import commit_of
from lgclip.store.keys import weights_of

_SAFE = "model.safetensors"
_PICKLE = "pytorch_model.bin"
LAYOUT = Layout(config="config.json", weights=(_SAFE, _PICKLE), local_weights=(_SAFE, _PICKLE))


@dataclass(frozen=True)
class Named(Source):
    """Describes a timm architecture with the weights of its tag, or of a checkpoint.

    Attributes:
        model: `ARCHITECTURE.TAG`; without a tag it is timm's default.
        revision: Branch, tag or commit of the hub repository that the weights are in.
        checkpoint: Local weights, or `package:NAME`, used instead of the hub's.
    """

    model: str
    revision: str | None = None
    checkpoint: str | None = None

    def check(self, allow_pickle: bool) -> None:
        """Rejects what cannot be loaded, before anything is loaded.

        Raises:
            ValueError: If timm does not know the name, or there are no weights for it.
        """
        import timm
        from timm.models import get_pretrained_cfg, is_model

        name, _, tag = self.model.partition(".")
        if not is_model(name):
            raise ValueError(
                f"encoder.model={self.model}: timm has no such architecture{did_you_mean(name, timm.list_models())}; "
                f"or give a folder, or {HUB}OWNER/NAME"
            )
        pretrained_names = timm.list_pretrained(f"{name}.*")
        if tag and self.model not in pretrained_names:
            raise ValueError(
                f"encoder.model={self.model}: {name} has no such weights{did_you_mean(self.model, pretrained_names)}; "
                f"it has {', '.join(pretrained_names) or 'none, so give encoder.checkpoint=FILE'}"
            )
        if self.checkpoint is not None:
            self.weights(allow_pickle)
            return
        entry = get_pretrained_cfg(self.model)
        if entry is None or not entry.hf_hub_id:
            remedy = "give"
            if entry is not None and entry.url:
                remedy = f"download {entry.url} and give"
            raise ValueError(
                f"encoder.model={self.model}: its weights are not on the hub; {remedy} encoder.checkpoint=FILE"
            )

    def names(self) -> Mapping[str, str]:
        packaged = self._packaged()
        if packaged is None:
            return {}
        import timm

        with torch.device("meta"):
            model = timm.create_model(packaged.architecture, pretrained=False)
        return names_in_order(stored_shapes(packaged.path()), model_shapes(model))

    def config(self) -> dict[str, Any]:
        from timm.models import get_pretrained_cfg

        entry = get_pretrained_cfg(self.model)
        weights: dict[str, Any] = {}
        if entry is not None:
            # With a checkpoint nothing may point to timm's own weights, which would be loaded instead.
            weights = entry.to_dict(remove_source=self.checkpoint is not None)
        return {"architecture": self.model.partition(".")[0], "pretrained_cfg": weights}

    def weights(self, allow_pickle: bool) -> Path:
        packaged = self._packaged()
        if packaged is not None:
            return packaged.path()
        if self.checkpoint is not None:
            return checkpoint_file(self.checkpoint, allow_pickle)
        entry = self.config()["pretrained_cfg"]
        repo = entry["hf_hub_id"]
        names = LAYOUT.weights
        # Some repositories hold the weights of several models under names of their own.
        if file := entry.get("hf_hub_filename"):
            names = (file,)
        return hub_file(repo, commit_of(repo, self.revision), names, allow_pickle)

    def repositories(self) -> list[tuple[str, str | None]]:
        if self.checkpoint:
            return []
        return [(self.config()["pretrained_cfg"]["hf_hub_id"], self.revision)]

    def stands_for(self) -> dict[str, str]:
        identity = {"architecture": self.model}
        # A checkpoint has its own field and hash.
        if self.checkpoint is None:
            identity["weights"] = weights_of(self.config()["pretrained_cfg"]["hf_hub_id"], self.revision)
        return identity

    def _packaged(self) -> PackagedWeights | None:
        """Returns the weights of a package that the checkpoint names, if it names any.

        Raises:
            ValueError: If they are of another architecture.
        """
        if self.checkpoint is None:
            return None
        packaged = packaged_weights(self.checkpoint)
        if packaged is not None and packaged.architecture != self.model.partition(".")[0]:
            raise ValueError(
                f"encoder.model={self.model}: encoder.checkpoint={self.checkpoint} holds the weights of "
                f"{packaged.architecture}; set encoder.model={packaged.architecture}"
            )
        return packaged
