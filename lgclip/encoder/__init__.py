"""Vision encoders, with or without a text tower."""
