"""RegMean whose layers are fitted to what the merged layers before them give."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.fitted import Fitted, FittedMethod, Fitting


@dataclass(frozen=True)
class RegmeanPlusPlus(FittedMethod):
    r"""$W^\top = (\sum_i \tilde G_i)^{-1} \sum_i \tilde G_i W_i^\top$ as in RegMean, block by block from the input on.

    $G_i$ of block l comes of the data of task i sent through the merged blocks before l, then through model i's own
    layers within the block. What lies outside of all blocks, such as embeddings, is averaged first; a linear layer
    outside of the blocks is a block of its own. Blocks and their order are found by watching a forward.

    A model of one block is merged as by RegMean. The data run once up to each block: about half as many forwards as
    there are blocks. Labels are not looked at, but language models are run on the right answers, as in training.

    Source: RegMean++, arXiv 2508.03121.
    """

    requirement = "training data"
    source = "RegMean++, arXiv 2508.03121"
    use = "train"

    reduce_non_diagonal_ratio: float = hyper(0.95, "α, what entries off the diagonal of a Gram are multiplied by",
                                             low=0.0, high=1.0)  # fmt: skip
    examples: int = hyper(256, "training examples of each task", low=1)
    batch_size: int = hyper(16, "examples that run at once", low=1)
    count_padding: bool = hyper(False, "take padding for tokens, as the original code of RegMean does")

    def looks_at(self, available: int) -> int:
        return min(available, self.examples)

    def preview(self) -> TensorMethod:
        from fusion_bench.method.solved_regression import SolvedRegression

        # The merge within the fit takes more than writing its result.
        return SolvedRegression(ratio=self.reduce_non_diagonal_ratio)

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        from fusion_bench.method.solved_blocks import Progressive, Settled

        progressive = Progressive(self.reduce_non_diagonal_ratio, self.examples, self.batch_size, self.count_padding)
        solutions = progressive.solve(inputs, fitting)
        return Fitted(Settled(solutions=solutions), {"statistics": dict(solutions.record)})
