"""What algorithms that look at data measure on a model: computed once for a model and its data, then read by slice.

A statistic is a checkpoint, an index from the model's parameters to its tensors, and a record of what it cost. Each
function here takes the model's name and checkpoint and a :class:`~fusion_bench.fitting.Fitting`.
"""

from __future__ import annotations

from fusion_bench.statistics.base import Statistics
from fusion_bench.statistics.fisher import FisherEstimator, diagonal_fisher
from fusion_bench.statistics.input_grams import input_grams
from fusion_bench.statistics.objectives import Estimator
from fusion_bench.statistics.output_grams import output_grams
from fusion_bench.statistics.vectors import vector_fishers

__all__ = [
    "Estimator", "FisherEstimator", "Statistics", "diagonal_fisher", "input_grams", "output_grams", "vector_fishers",
]  # fmt: skip
