"""Writers of prompts: one file a kind."""
