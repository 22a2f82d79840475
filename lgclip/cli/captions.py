"""Implements `lgclip captions`: exports and imports the captions of a data set's training images as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from lgclip.datasets.splits import DatasetSplits
from lgclip.prompts.caption_file import match_images, read_captions
from lgclip.prompts.captioner import CaptionGenerator
from lgclip.runtime.config_aliases import register_second_encoders
from lgclip.runtime.instantiate import build
from lgclip.stages.caption_set import Captions
from lgclip.stages.generate import training_images
from lgclip.store.atomic import atomic_write
from lgclip.store.remote import push_pending
from lgclip.store.root import StoreError, check_writable, open_root, root_of


def export_captions(captions: Captions, path: Path) -> int:
    """Writes the stored captions, one JSON line per image: id, file, class, name and caption.

    Args:
        captions: Captions of the images by a captioner.
        path: File to write, atomically.

    Returns:
        Number of captions.

    Raises:
        ValueError: If there is none.
    """
    images = captions.images
    names = [target_class.name for target_class in captions.target_classes]
    captions.store.refresh()  # other processes may be captioning at this moment
    lines = []
    for place, (image, label) in enumerate(zip(images.ids, images.labels, strict=True)):
        caption = captions.store.get(image)
        if caption is None:
            continue
        # The id is what an import goes by; file and name are for the reader.
        lines.append({
            "image": image, "file": images.where(place), "class": label, "name": names[label], "caption": caption,
        })  # fmt: skip
    if not lines:
        raise StoreError(f"no training image of {images.name} has a stored caption: caption them by generate.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    return len(lines)


def import_captions(captions: Captions, path: Path) -> int:
    """Stores the captions in a file as those of a captioner, so that a run uses them.

    Args:
        captions: Captions of the images by a captioner.
        path: JSON lines, in the format of `export_captions` or `prompts.caption_file`.

    Returns:
        Number of new captions.

    Raises:
        ValueError: If an image has no caption in the file, or a different one in the store. Nothing is stored then.
    """
    read = match_images(read_captions(path, "captions"), captions.images, str(path))
    captions.store.refresh()
    stored = {image: captions.store.get(image) for image in read}
    # An entry of the store never changes: earlier results name its key, and would no longer be those of its content.
    conflicting = [image for image, caption in stored.items() if caption not in (None, read[image])]
    if conflicting:
        raise StoreError(
            f"{path}: {len(conflicting)} images have another caption in the store, first "
            f"{captions.where(conflicting[0])}; nothing "
            "was stored. Use the file as it is by llm=captions, or import it into a separate store"
        )
    captions.store.add({image: caption for image, caption in read.items() if stored[image] is None})
    return sum(caption is None for caption in stored.values())


def captions_command(action: str, path: Path, overrides: Sequence[str], conf: Path) -> Iterator[str]:
    """Runs `lgclip captions`.

    Args:
        action: `export` or `import`.
        path: The file of JSON lines.
        overrides: Overrides as for generate.py: data set, captioner, store.
        conf: Folder of the configs.

    Yields:
        A line on what was written or stored.

    Raises:
        ValueError: If the overrides select no data set with training images, or no captioner.
    """
    register_second_encoders()
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg: Any = compose("generate", list(overrides))
    try:
        data = DatasetSplits(partial(build, cfg.dataset, _convert_="all"))
        prompt_generator = build(cfg.llm, _convert_="all")
        if not isinstance(prompt_generator, CaptionGenerator):
            raise ValueError("llm: name a captioner, such as llm=blip2; the others caption no images")
        real = training_images(data)
    # Hydra wraps a ValueError of a constructor; its own message is the one that helps.
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
    # `root_of` makes no folder: an export may read a store that is read-only.
    if action == "export":
        captions = Captions(real, prompt_generator, root_of(cfg.paths.store), len(real))
        count = export_captions(captions, path)
        yield f"{path}: {count:,} captions of {len(real):,} training images of {real.name}"
    else:
        store = open_root(cfg.paths.store)
        check_writable(store)
        captions = Captions(real, prompt_generator, store, len(real))
        count = import_captions(captions, path)
        push_pending(store)
        yield f"captions/{captions.store.key}: {count:,} of {len(real):,} captions are new"
