"""Evaluation of logits that come in parts: exact sums, which merge."""

from ._evaluation import Evaluation
from ._paired import PairedEvaluation
from ._results import Bin, EvaluationResult, PairedResult

__all__ = ["Bin", "Evaluation", "EvaluationResult", "PairedEvaluation", "PairedResult"]
