"""Give class names, get an image classifier: no real image, no image-text pair, no text tower."""

import os

__version__ = "0.1.0"

# Before torch multiplies: a row of a product is then the same to the last bit whatever stands beside it and however
# many threads there are, at the same speed. On the CPUs that MKL can do so on; elsewhere it is not heeded.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
