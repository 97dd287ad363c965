"""Error against confidence: logits [m, 0] with target 0, from certainly wrong to certainly right.

loss = log(1 + exp(-m)),    gradient at the target = -1 / (1 + exp(m))
"""

import math

import numpy as np

from .worker import Question, WorkerError

MARGINS = tuple(range(-100, 70))  # losses from 100 to 1e-30
TAIL = 20  # the margin that the README's table shows


def exact(margin):
    """(loss, gradient at the target): float64 is exact enough for float32's errors."""
    return math.log1p(math.exp(-margin)), -1 / (1 + math.exp(margin))


def ask(workers):
    """By peer, (loss, gradient or None) at every margin; peers that fail are left out."""
    answers, target = {}, np.array([0])
    for name, worker in workers.items():
        try:
            answers[name] = [_ask_one(worker, margin, target) for margin in MARGINS]
        except WorkerError:
            continue
    return answers


def _ask_one(worker, margin, target):
    loss, gradient = worker.ask(Question(np.array([[margin, 0]], np.float32), target)).found
    return loss, None if gradient is None else float(gradient[0, 0])


def relative_error(value, truth):
    return abs(value / truth - 1)


def errors(answers, part):
    """Relative errors of a peer's answers at every margin; part 0: loss, 1: gradient."""
    pairs = zip(answers, MARGINS, strict=True)
    found = [(each[part], exact(margin)[part]) for each, margin in pairs]
    if any(value is None for value, _ in found):
        return None
    return [relative_error(*pair) for pair in found]
