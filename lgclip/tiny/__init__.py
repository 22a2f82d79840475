"""The embedded default: a small procedural world and how its small models are built."""
