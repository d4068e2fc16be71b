"""The miniature vision suite: eight image tasks, a tiny CLIP, the recipe for its experts.

``load`` gives the images; nothing here imports torch before it trains.
"""

from .tasks import SIZES, TASKS, VERSION, ImageSet, classes, load, templates

__all__ = ["SIZES", "TASKS", "VERSION", "ImageSet", "classes", "load", "templates"]
