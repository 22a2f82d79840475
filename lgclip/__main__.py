"""Runs `python -m lgclip` as the command `lgclip`."""

import sys

from lgclip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
