"""Replaces a pipeline's autoencoder by a small one, which decodes several times as fast and a little less exactly."""

from typing import Any

from lgclip.encoder.weight_files import read_config
from lgclip.runtime.hub import commit_of, hub_errors
from lgclip.runtime.model_folders import check_component
from lgclip.store.keys import local_folder

_KIND = "AutoencoderTiny"
"""Class of such autoencoders in diffusers (TAESD), which their config names."""


def check_autoencoder(model: str) -> None:
    """Rejects a local folder that holds no small autoencoder.

    Raises:
        ValueError: If there is no such folder, it is another kind of model, or it has no weights.
    """
    key = f"diffuser.vae={model}"
    try:
        folder = local_folder(model)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if folder is None:
        return
    check_component(folder, key)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}: it has no config.json; name the folder of one {_KIND}")
    kind = read_config(folder / "config.json").get("_class_name")
    if kind != _KIND:
        raise ValueError(f"{key}: it is a {kind}, and only {_KIND} can replace a pipeline's autoencoder")


def replace_autoencoder(pipeline: Any, model: str, revision: str | None) -> None:
    """Replaces the autoencoder of a pipeline, in the precision of the previous one.

    Args:
        pipeline: A pipeline of diffusers.
        model: A folder or a hub id.
        revision: The hub's revision; ignored for a folder.

    Raises:
        HubError: If it cannot be loaded from the hub.
        ValueError: If the pipeline has no autoencoder, or one whose latents have another number of channels.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    current = getattr(pipeline, "vae", None)
    if current is None:
        raise ValueError(f"diffuser.vae={model}: {type(pipeline).__name__} has no autoencoder; set it to null")
    folder = local_folder(model)
    commit = commit_of(model, revision) if folder is None else None
    with hub_errors(model):
        replacement: Any = AutoencoderTiny.from_pretrained(
            folder or model, revision=commit, use_safetensors=True, dtype=current.dtype
        )
    expected = _latents(current)
    actual = _latents(replacement)
    if actual != expected:
        raise ValueError(
            f"diffuser.vae={model}: it decodes latents of {actual[0]} channels to {actual[1]} times their size, and "
            f"those of {type(pipeline).__name__} have {expected[0]} channels and {expected[1]} times; choose the one "
            "that is made for this pipeline"
        )
    pipeline.vae = replacement


def _latents(autoencoder: Any) -> tuple[int, int]:
    """Returns the number of channels of an autoencoder's latents, and how many times as large as them an image is."""
    config = autoencoder.config
    blocks = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    return config.latent_channels, 2 ** (len(blocks) - 1)
