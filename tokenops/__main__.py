"""``python -m tokenops``."""

from __future__ import annotations

import sys

from tokenops.cli import main

if __name__ == "__main__":
    sys.exit(main())
