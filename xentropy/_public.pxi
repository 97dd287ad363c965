# The public calls of cross entropy, which `_api.py` declares and documents. Part of _kernels.pyx.
#
# In Python, the look-up of each default that is keyword-only and the way of the options into their
# record would be a third of the time of a short row.

cdef object no_empty_mean = math.nan


def cross_entropy(logits, target, weight=None, *, sample_weight=None, ignore_index=-100,
                  reduction="mean", normalizer=None, empty_mean=no_empty_mean,
                  label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None, axis=1,
                  base=None, n_threads=None):
    cdef Options o = record(axis, ignore_index, reduction, normalizer, label_smoothing, z_loss,
                            logit_scale, softcap, base, n_threads)
    return answer(False, logits, target, weight, sample_weight, o, None, None, empty_mean)


def cross_entropy_with_grad(logits, target, weight=None, *, sample_weight=None, ignore_index=-100,
                            reduction="mean", normalizer=None, empty_mean=no_empty_mean,
                            label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None, axis=1,
                            base=None, grad_output=None, out=None, n_threads=None):
    cdef Options o = record(axis, ignore_index, reduction, normalizer, label_smoothing, z_loss,
                            logit_scale, softcap, base, n_threads)
    return answer(True, logits, target, weight, sample_weight, o, grad_output, out, empty_mean)


cdef object answer(bint with_grad, logits, target, weight, sample_weight, Options options,
                   grad_output, out, empty_mean):
    """The result of a public call."""
    if empty_mean is no_empty_mean:
        result = computed(with_grad, logits, target, weight, sample_weight, options, grad_output,
                          out, False, False, False)
        if result is not None:
            return result
    from xentropy import _api

    call = with_grad, logits, target, weight, sample_weight, options, grad_output, out
    return _api.general_cross_entropy(call, empty_mean)
