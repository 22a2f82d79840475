"""`lgclip captions`: the captions of a data set's training images, to and from JSON lines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from lgclip.allowed import build
from lgclip.captions import Captions
from lgclip.generation import opened
from lgclip.prompts.caption_lines import found_in, read_captions
from lgclip.prompts.captioner import ImageWriter
from lgclip.store import StoreError, open_root, root_of
from lgclip.whole import write_whole


def export_captions(captions: Captions, path: Path) -> int:
    """Writes the captions that are stored, one JSON line an image: id, file, class, name and caption.

    Args:
        captions: Of which images, and by whom.
        path: File to write, whole or not at all.

    Returns:
        How many there are.

    Raises:
        ValueError: If there is none.
    """
    images, names = captions.images, [subject.name for subject in captions.subjects]
    captions.store.refresh()
    lines = [
        {"image": image, "file": images.where(at), "class": label, "name": names[label], "caption": caption}
        for at, (image, label) in enumerate(zip(images.ids, images.labels, strict=True))
        if (caption := captions.store.get(image)) is not None
    ]
    if not lines:
        raise StoreError(f"no training image of {images.name} has a stored caption: caption them by generate.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    return len(lines)


def import_captions(captions: Captions, path: Path) -> int:
    """Stores the captions in a file as those of a captioner, so that a run finds them there.

    Args:
        captions: Of which images, and by whom.
        path: JSON lines, as `export_captions` or `prompts.caption_lines` has them.

    Returns:
        How many were not there before.

    Raises:
        ValueError: If an image has no caption in the file, or another one in the store. Nothing is stored then.
    """
    found = found_in(read_captions(path, "captions"), captions.images, str(path))
    captions.store.refresh()
    stored = {image: captions.store.get(image) for image in found}
    other = [image for image, caption in stored.items() if caption not in (None, found[image])]
    if other:
        raise StoreError(
            f"{path}: {len(other)} images have another caption in the store, first {captions.where(other[0])}; nothing "
            "was stored. Use the file as it is by llm=captions, or import it into a store of its own"
        )
    captions.store.add({image: caption for image, caption in found.items() if stored[image] is None})
    return sum(caption is None for caption in stored.values())


def captions_command(action: str, path: Path, overrides: Sequence[str], conf: Path) -> Iterator[str]:
    """What `lgclip captions` has to say.

    Args:
        action: `export` or `import`.
        path: The file of JSON lines.
        overrides: Values as generate.py takes them: which data set, which captioner, which store.
        conf: Folder of the configs.

    Yields:
        A line on what was written or stored.

    Raises:
        ValueError: If the values name no data set with training images, or no captioner.
    """
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg: Any = compose("generate", list(overrides))
    try:
        dataset, writer = (build(cfg[group], _convert_="all") for group in ("dataset", "llm"))
        if not isinstance(writer, ImageWriter):
            raise ValueError("llm: name a captioner, such as llm=blip2; the others caption no images")
        values = dataset.training_values()
        real = opened(writer, lambda: build(cfg.dataset, **values, _convert_="all"), dataset.subjects)
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
    if action == "export":
        captions = Captions(real, writer, root_of(cfg.paths.store), len(real))
        count = export_captions(captions, path)
        yield f"{path}: {count:,} captions of {len(real):,} training images of {real.name}"
    else:
        captions = Captions(real, writer, open_root(cfg.paths.store), len(real))
        count = import_captions(captions, path)
        yield f"captions/{captions.store.key}: {count:,} of {len(real):,} captions are new"
