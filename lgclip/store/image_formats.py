"""Names the values of `paths.images`: how a run stores its synthetic images. Imports nothing heavy."""

STORED = ("files", "tar")
"""One PNG file per image, or tar shards. Existing images are found in both."""

DISCARDED = ("sheet", "none")
"""Images are encoded when they are generated, and not stored; `sheet` stores a few thumbnails per class."""


def check_image_format(value: object) -> None:
    """Rejects an unknown value.

    Args:
        value: Value of `paths.images`; None takes what suits the store.

    Raises:
        ValueError: If it is none of `STORED` and `DISCARDED`.
    """
    formats = (*STORED, *DISCARDED)
    if value is not None and value not in formats:
        raise ValueError(f"paths.images={value}: choose {', '.join(formats)}")


def check_stored(value: object, use: str) -> None:
    """Rejects a value with which images are not stored, where something needs them.

    Args:
        value: Value of `paths.images`.
        use: What needs the images.

    Raises:
        ValueError: If it is one of `DISCARDED`.
    """
    if value in DISCARDED:
        raise ValueError(f"paths.images={value} stores no image, and {use}: choose {' or '.join(STORED)}")
