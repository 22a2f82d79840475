"""Learnt prompts as safetensors files, which say what they are and which towers they are for."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lgclip.encoder.base import LearningTowers
from lgclip.identity import SCHEMA
from lgclip.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens
from lgclip.whole import write_whole

CONTEXTS = {TextPrompt.kind: TextContext, VisualPrompt.kind: VisualTokens}
_NEEDED = ("kind", "width", "encoder", "name", "prompt", "class_names")


def save_prompt(prompt: TextPrompt | VisualPrompt, path: Path) -> None:
    """Writes a prompt as safetensors, with what it is and the key of the towers it was learned through.

    Raises:
        WriteError: If the system refuses it.
    """
    about = {
        "schema": SCHEMA,
        "kind": prompt.kind,
        "width": prompt.vectors.shape[-1],
        "encoder": prompt.towers.key,
        "name": prompt.towers.name,
        "prompt": asdict(prompt.context),
        "class_names": list(prompt.class_names) if isinstance(prompt, TextPrompt) else [],
    }
    with write_whole(path) as temporary:
        vectors = prompt.vectors.detach().to("cpu", torch.float32).contiguous()
        save_file({"vectors": vectors}, temporary, metadata={"lgclip": json.dumps(about)})


def about_prompt(path: Path) -> dict[str, Any]:
    """What a prompt's file says of it: kind, width, encoder, name, prompt, class_names; no model is loaded.

    Raises:
        ValueError: If there is no such file, it is damaged, or it holds no prompt.
    """
    return _opened(path)[0]


def load_prompt(
    path: Path, towers: LearningTowers, class_names: Sequence[str] | None = None
) -> TextPrompt | VisualPrompt:
    """A prompt from its file.

    Args:
        path: The file.
        towers: Those that it was learned through.
        class_names: Classes that a text prompt is for; None for those that it was learned on.

    Raises:
        ValueError: As of `about_prompt`; if it was learned through other towers, or has vectors of other classes.
    """
    about, vectors = _opened(path)
    if about["encoder"] != towers.key:
        what = f"encoder.model={about['name']} (width {about['width']}), and this is {towers.name} of other weights"
        raise ValueError(f"{path}: this prompt was learned through {what}; judge it with that encoder")
    learnt = about["class_names"]
    names = learnt if class_names is None else list(class_names)
    try:
        context = CONTEXTS[about["kind"]](**about["prompt"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version: {error}; learn it again") from error
    if isinstance(context, VisualTokens):
        prompt = VisualPrompt(towers, context)
    elif context.per_class and names != learnt:
        raise ValueError(
            f"{path}: this prompt has vectors of each of {len(learnt)} classes, and the {len(names)} to be judged are "
            "others; one learned with learner.per_class=false is for any"
        )
    else:
        prompt = TextPrompt(towers, context, names)
    if prompt.vectors.shape != vectors.shape:
        raise ValueError(f"{path} is damaged: its vectors are of shape {tuple(vectors.shape)}; learn it again")
    prompt.load_state_dict({"vectors": vectors})
    return prompt


def _opened(path: Path) -> tuple[dict[str, Any], Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such prompt; give the file that the learning left")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lgclip", "{}"))
            vectors = file.get_tensor("vectors") if "vectors" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; learn it again") from error
    if vectors is None or not isinstance(about, dict) or any(name not in about for name in _NEEDED):
        raise ValueError(f"{path} holds no soft prompt")
    if vectors.shape[-1] != about["width"] or not torch.isfinite(vectors).all():
        raise ValueError(f"{path} is damaged: its vectors are not finite, or not {about['width']} wide; learn it again")
    return about, vectors
