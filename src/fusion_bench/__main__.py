"""``python -m fusion_bench``."""

import sys

from fusion_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
