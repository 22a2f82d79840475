"""Stores tuned prompts as safetensors files, with metadata about their type and towers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lgclip.encoder.base import LearningTowers
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.atomic import atomic_write
from lgclip.store.checksums import CHECKSUM, checksum_of
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens

CONTEXTS = {TextPrompt.kind: TextContext, VisualPrompt.kind: VisualTokens}
_NEEDED = ("kind", "width", "encoder", "name", "prompt", "class_names")


def save_prompt(prompt: TextPrompt | VisualPrompt, path: Path) -> None:
    """Writes a prompt as safetensors, with its metadata and the key of the towers it was tuned with.

    Raises:
        WriteError: If the system refuses it.
    """
    about = {
        "schema": STORE_SCHEMA,
        "kind": prompt.kind,
        "width": prompt.vectors.shape[-1],
        "encoder": prompt.towers.key,
        "name": prompt.towers.name,
        "prompt": asdict(prompt.context),
        "class_names": list(prompt.class_names) if isinstance(prompt, TextPrompt) else [],
    }
    # In fp32 and on the CPU, whatever it was trained in, so that equal prompts are equal files.
    with atomic_write(path) as temporary:
        vectors = prompt.vectors.detach().to("cpu", torch.float32).contiguous()
        about[CHECKSUM] = checksum_of({"vectors": vectors}, json.dumps(about))
        save_file({"vectors": vectors}, temporary, metadata={"lgclip": json.dumps(about)})


def about_prompt(path: Path) -> dict[str, Any]:
    """Reads the metadata of a prompt's file: kind, width, encoder, name, prompt, class_names; loads no model.

    Raises:
        ValueError: If the file does not exist, is damaged, or holds no prompt.
    """
    return _opened(path)[0]


def load_prompt(
    path: Path, towers: LearningTowers, class_names: Sequence[str] | None = None
) -> TextPrompt | VisualPrompt:
    """Loads a prompt from its file.

    Args:
        path: The file.
        towers: The towers that it was tuned with.
        class_names: Classes that a text prompt is for; None for those that it was tuned on.

    Raises:
        ValueError: As in `about_prompt`; if it was tuned with other towers, or has vectors of other classes.
    """
    about, vectors = _opened(path)
    # Checked before the shapes: towers of the same width and other weights would pass that test.
    _check_towers(path, about, towers.key, towers.name)
    learned_prompts = about["class_names"]
    names = learned_prompts
    if class_names is not None:
        names = list(class_names)
    # The metadata is text from a file that may be damaged or made by another version, so an unknown field must
    # become an error that names the file.
    try:
        context = CONTEXTS[about["kind"]](**about["prompt"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version: {error}; tune it again") from error
    if isinstance(context, VisualTokens):
        prompt = VisualPrompt(towers, context)
    elif context.per_class and names != learned_prompts:
        raise ValueError(
            f"{path}: this prompt has vectors of each of {len(learned_prompts)} classes, and the {len(names)} to be "
            f"evaluated are "
            "others; one learned with prompt_tuning.per_class=false is for any"
        )
    else:
        prompt = TextPrompt(towers, context, names)
    if prompt.vectors.shape != vectors.shape:
        raise ValueError(f"{path} is damaged: its vectors are of shape {tuple(vectors.shape)}; tune it again")
    # The constructor has sampled random vectors. They are replaced here, so their seed does not matter.
    prompt.load_state_dict({"vectors": vectors})
    return prompt


def visual_vectors(path: Path, key: str, name: str) -> Float[Tensor, "l n w"]:
    """Loads the vectors of a visual prompt from its file.

    Args:
        path: The file.
        key: Content key of the towers, see `Encoder.prompt_key`.
        name: Name of their model, for the error message.

    Raises:
        ValueError: As in `about_prompt`; if it is no visual prompt, or was tuned with other towers.
    """
    about, vectors = _opened(path)
    if about["kind"] != VisualPrompt.kind or vectors.ndim != 3:
        raise ValueError(f"{path} holds no visual prompt")
    _check_towers(path, about, key, name)
    return vectors


def _check_towers(path: Path, about: Mapping[str, Any], key: str, name: str) -> None:
    if about["encoder"] != key:
        expected = f"encoder.model={about['name']} (width {about['width']}), and this is {name} of other weights"
        raise ValueError(f"{path}: this prompt was tuned with {expected}; evaluate it with that encoder")


def _opened(path: Path) -> tuple[dict[str, Any], Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such prompt; give the file that the tuning wrote")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lgclip", "{}"))
            vectors = None
            # `safe_open` offers `keys()` and no `in`.
            if "vectors" in file.keys():  # noqa: SIM118
                vectors = file.get_tensor("vectors")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; tune it again") from error
    if vectors is None or not isinstance(about, dict) or any(name not in about for name in _NEEDED):
        raise ValueError(f"{path} holds no tuned prompt")
    if about.pop(CHECKSUM, None) != checksum_of({"vectors": vectors}, json.dumps(about)):
        raise ValueError(f"{path} is damaged: its checksum is wrong; tune it again")
    # Not-a-number vectors would turn every score into one, and the report would blame the encoder.
    if vectors.shape[-1] != about["width"] or not torch.isfinite(vectors).all():
        raise ValueError(f"{path} is damaged: its vectors are not finite, or not {about['width']} wide; tune it again")
    return about, vectors
