"""Language models of Hugging Face transformers, trained and evaluated without their logits.

::

    import xentropy.transformers

    xentropy.transformers.patch(model)
    loss = model(input_ids=x, labels=x).loss  # no logits
    loss.backward()

The output layer answers with logits that are not computed yet: a tensor that keeps the hidden
states, the weight and what the model does to the logits (scale, soft cap, conversion, slices).
Cross entropy takes the loss from those; whatever else touches the logits, computes them.
transformers itself is not imported: what counts is `get_output_embeddings`.
"""

from .. import torch  # noqa: F401  it says what to install where torch is absent
from ._notes import materialised
from ._patch import patch, unpatch

__all__ = ["materialised", "patch", "unpatch"]
