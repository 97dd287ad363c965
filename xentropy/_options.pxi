# The options of a call of cross entropy, and what the kernels make of them. Part of _kernels.pyx.


@cython.final
@cython.freelist(8)
cdef class Options:
    """All options of a call that are not arrays, in one record.

    The public functions, the bindings and the front for PyTorch share it; `make_options` has the
    defaults. Values are the caller's, unchecked; `xentropy.cross_entropy` has their meaning.
    """
    NAMES = ("axis", "ignore_index", "reduction", "normalizer", "label_smoothing", "z_loss",
             "logit_scale", "softcap", "base", "n_threads")

    cdef readonly object axis, ignore_index, reduction, normalizer, label_smoothing, z_loss
    cdef readonly object logit_scale, softcap, base, n_threads


# Not a constructor: before Cython 3.3 its arguments go through a tuple and a dictionary, 0.3 us.
def make_options(*, axis=1, ignore_index=-100, reduction="mean", normalizer=None,
                 label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None, base=None,
                 n_threads=None):
    """The record of these options."""
    return record(axis, ignore_index, reduction, normalizer, label_smoothing, z_loss, logit_scale,
                  softcap, base, n_threads)


cdef Options record(object axis, object ignore_index, object reduction, object normalizer,
                    object label_smoothing, object z_loss, object logit_scale, object softcap,
                    object base, object n_threads):
    cdef Options o = Options.__new__(Options)
    o.axis = axis
    o.ignore_index = ignore_index
    o.reduction = reduction
    o.normalizer = normalizer
    o.label_smoothing = label_smoothing
    o.z_loss = z_loss
    o.logit_scale = logit_scale
    o.softcap = softcap
    o.base = base
    o.n_threads = n_threads
    return o


cdef enum Reduction:
    kNone, kSum, kMean, kUnknown


# What a call needs to know beside CrossEntropyCall.
cdef struct Settings:
    int class_axis
    int threads
    Reduction reduction
    double normalizer  # nan: the summed weight of the rows


cdef bint take_options(CrossEntropyCall* c, Settings* s, Options o) except -1:
    """All but the axis and ignore_index. False if one of them is not plain."""
    if not take_terms(&c.terms, o) or not plain_softcap(o.softcap, c.terms.logit_scale, &c.softcap):
        return False
    s.reduction = reduction_of(o.reduction)
    if s.reduction == kUnknown or not plain_threads(o.n_threads, &s.threads):
        return False
    s.normalizer = NAN
    if o.normalizer is None:
        return True
    if s.reduction != kMean or not plain_real(o.normalizer, &s.normalizer):
        return False
    return isfinite(s.normalizer) and s.normalizer != 0


cdef bint plain_softcap(object value, double logit_scale, double* number) noexcept:
    """The softcap, by which the kernels cap at softcap / logit_scale; 0 for None."""
    number[0] = 0
    if value is None:
        return True
    if not plain_real(value, number):
        return False
    return (least_scale <= number[0] <= largest_scale
            and least_scale <= number[0] / logit_scale <= largest_scale)


cdef Reduction reduction_of(object name) noexcept:
    if type(name) is not str:
        return kUnknown
    if name == "mean":
        return kMean
    if name == "sum":
        return kSum
    return kNone if name == "none" else kUnknown


cdef bint take_terms(Terms* t, Options o) noexcept:
    """The numbers in the formula of a row."""
    if not plain_real(o.label_smoothing, &t.label_smoothing) or not 0 <= t.label_smoothing <= 1:
        return False
    if t.classes == 1:
        t.label_smoothing = 0  # no other class to share the mass with
    if not plain_real(o.z_loss, &t.z_loss) or not 0 <= t.z_loss < INFINITY:
        return False
    if not plain_real(o.logit_scale, &t.logit_scale):
        return False
    if not least_scale <= t.logit_scale <= largest_scale:
        return False
    return plain_unit(o.base, &t.unit)
