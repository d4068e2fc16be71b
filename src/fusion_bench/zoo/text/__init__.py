"""The miniature text-to-text suite: eight generated tasks, a tiny T5, the recipe for its experts.

``load`` gives the examples; nothing here imports torch before it trains or evaluates.
"""

from .tasks import SEED, SIZES, TASKS, VERSION, load

__all__ = ["SEED", "SIZES", "TASKS", "VERSION", "load"]
