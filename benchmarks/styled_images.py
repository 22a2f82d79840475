"""Renders a run's synthetic images in a style of the small world, by class, so that no style gap remains.

`python -m benchmarks.styled_images GENERATE_FOLDER STYLE OUT`, then `diffuser=folder diffuser.root=OUT`. The accuracy
of a method with these images is an upper bound for any adapter of the diffusion model (docs/reproduce/air.md).
"""

import json
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from lgclip.tiny.styles import STYLES


def render_in_style(run: Path, style: str, out: Path) -> int:
    """Writes the images in the layout of `diffuser=folder`.

    Args:
        run: Folder of `generate.py`, with `images.jsonl`.
        style: One of `STYLES`.
        out: Target folder.

    Returns:
        Number of images.
    """
    counts: Counter[int] = Counter()
    for index, line in enumerate((run / "images.jsonl").read_text().splitlines()):
        row = json.loads(line)
        label = row["class"]
        pixels = np.asarray(Image.open(row["file"]).convert("RGB"))
        folder = out / f"{label:03}-{row['name']}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(STYLES[style](pixels, index)).save(folder / f"{counts[label]:04}_{row['name']}.png")
        counts[label] += 1
    return sum(counts.values())


def main() -> None:
    """Renders the images given on the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of generate.py")
    parser.add_argument("style", choices=sorted(STYLES))
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(f"{render_in_style(options.run, options.style, options.out)} images in {options.out}")


if __name__ == "__main__":
    main()
