"""Give class names, get an image classifier: no real image, no image-text pair, no text tower."""

__version__ = "0.1.0"
