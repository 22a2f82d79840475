"""How images are judged: one file a method."""
