"""Checks of arguments: every error names the argument, its value and the position in it.

Only calls that the bindings return unused come here. Arguments of another type are converted;
everything is checked before the logits are read or a result is written. Labels alone are checked
by the kernels.
"""

# ruff: noqa: F401 - all of it is used as `_check.NAME`

from ._arrays import as_array, float_array, number_array, same_shape, wrong_type
from ._inputs import (
    OR_LEAVE_OUT,
    class_axis,
    grad_output,
    index,
    labels,
    logits,
    one_weight_per_row,
    sample_weight,
    target,
    weight,
)
from ._options import (
    base,
    empty_mean,
    finite_factor,
    flag,
    integer,
    logit_scale,
    n_threads,
    normalizer,
    options,
    real,
    real_between,
    reduction,
    softcap,
)
from ._results import out, shares_memory, taken, writable
