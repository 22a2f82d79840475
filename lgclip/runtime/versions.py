"""Declares versions, which are raised by hand when the same inputs give a different output than before.

Keys hold these numbers and never a hash of source files, so that a corrected docstring re-runs nothing.
"""

STORE_SCHEMA = 2
"""Version of what the stages write to the store: raised when the same inputs give other content."""

RESULT_SCHEMA = 5
"""Version of result.json: raised when a field changes its name or its meaning."""

CODE_VERSION = 2
"""Version of what a run computes from its config and its store: raised when an evaluation gives other numbers."""

REPLY_PARSER = 2
"""Version of how a language model's reply becomes prompts: raised when the same reply gives other prompts."""
