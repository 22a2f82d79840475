"""Locates the entry scripts and the configs: in a checkout, or their copies inside a wheel."""

from pathlib import Path


def script_place(name: str) -> Path:
    """Returns the path of an entry script, or of the configs (`conf`)."""
    # The wheel's copy first: a folder `conf` next to an installed package would be that of another one.
    package = Path(__file__).resolve().parents[1]
    return next(place for place in (package / "scripts" / name, package.parent / name) if place.exists())
