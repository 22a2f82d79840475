"""Classifies image files by an exported classifier, with ONNX Runtime, NumPy and Pillow alone.

python classify.py shapes.onnx photo.jpg ...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(file: str, steps: list[dict]) -> np.ndarray:
    """Returns the pixels of an image (3, height, width), cropped and resized as the exported file says."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    for step in steps:
        size = step["size"]
        if step["step"] == "resize":
            if isinstance(size, int):  # of the shorter side
                size = [int(size * side / min(image.size)) for side in (image.height, image.width)]
            image = image.resize((size[1], size[0]), Image.Resampling[step["interpolation"].upper()])
        elif step["step"] == "center_crop":
            left, top = round((image.width - size[1]) / 2), round((image.height - size[0]) / 2)
            image = image.crop((left, top, left + size[1], top + size[0]))
        else:
            sys.exit(f"{step['step']}: this example has no such step")
    return np.asarray(image).transpose(2, 0, 1)


def rejection_score(name: str, scores: np.ndarray, temperature: float) -> float:
    """Returns how much an image looks like one of the classes, by a score of `rejection` in the file."""
    highest = np.sort(scores)[::-1]
    weights = np.exp((scores - highest[0]) / temperature)
    values = {
        "max_score": highest[0],
        "margin": highest[0] - highest[1],
        "max_probability": 1 / weights.sum(),
        "energy": highest[0] + temperature * np.log(weights.sum()),
    }
    return float(values[name])


session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["lgclip"])
if len(about["views"]) != 1 or about["views"][0]["fraction"] is not None or about["resize_in_graph"]:
    sys.exit("this example is for a file of scales=single, exported without --resize")
for file in sys.argv[2:]:
    pixels = prepare(file, about["views"][0]["steps"])[None]
    scores, probs = map(np.asarray, session.run(["scores", "probs"], {"pixels": pixels}))
    best = probs[0].argmax()
    label = about["classes"][best]
    rejection = about["rejection"]  # null if the classifier rejects nothing
    if rejection and rejection_score(rejection["score"], scores[0], about["temperature"]) < rejection["threshold"]:
        label = f"none of these (most similar: {label})"
    print(file, label, f"{probs[0, best]:.3f}", sep="\t")
