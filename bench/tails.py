"""What a confident and right prediction costs, by every library that is installed.

Logits [20, 0] in float32, target 0. The loss is log(1 + exp(-20)), and its gradient in the
first logit is -1 / (1 + exp(20)): small, but not 0.
"""

import importlib
import math

import numpy as np

LOGITS = np.array([[20, 0]], np.float32)
TARGET = np.array([0])


def exact():
    return math.log1p(math.exp(-20)), -1 / (1 + math.exp(20))


def xentropy():
    import xentropy as xe

    loss, grad = xe.cross_entropy_with_grad(LOGITS, TARGET)
    return loss, grad[0, 0]


def numpy():
    e = np.exp(LOGITS - LOGITS.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.log(p[0, 0]), p[0, 0] - 1


def scipy():
    from scipy.special import log_softmax, softmax

    return -log_softmax(LOGITS, axis=1)[0, 0], softmax(LOGITS, axis=1)[0, 0] - 1


def scikit_learn():
    from sklearn._loss.loss import HalfMultinomialLoss

    loss = HalfMultinomialLoss(n_classes=2)
    losses, grad = loss.loss_gradient(TARGET.astype(np.float32), LOGITS)
    return losses[0], grad[0, 0]


def torch():
    import torch

    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGET))
    loss.backward()
    return loss.item(), logits.grad[0, 0].item()


def optax():
    import jax
    import optax

    def mean_loss(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, TARGET).mean()

    loss, grad = jax.value_and_grad(mean_loss)(LOGITS)
    return loss, grad[0, 0]


PEERS = {
    "xentropy": (xentropy, "xentropy"),
    "NumPy, by hand": (numpy, "numpy"),
    "scipy.special": (scipy, "scipy"),
    "scikit-learn": (scikit_learn, "sklearn"),
    "torch": (torch, "torch"),
    "jax + optax": (optax, "optax"),
}


def digits(value):
    return f"{value + 0.0:.7g}"


def main():
    print("| float32 logits [20, 0], target 0 | loss | gradient at the target |")
    print("| --- | ---: | ---: |")
    print("| exact |", " | ".join(map(digits, exact())), "|")
    absent = []
    for name, (answer, module) in PEERS.items():
        try:
            version = importlib.import_module(module).__version__
        except ImportError:
            absent.append(name)
        else:
            print(f"| {name} {version} |", " | ".join(map(digits, answer())), "|")
    if absent:
        print(f"\nNot installed: {', '.join(absent)}.")


if __name__ == "__main__":
    main()
