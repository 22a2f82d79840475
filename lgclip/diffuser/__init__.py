"""Where synthetic images come from."""
