"""The gradient is the slope of the loss."""

import pytest
from helpers.finite_differences import OPTIONS, problem, slopes
from helpers.support import TARGETS, assert_within

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_slope_of_the_loss(name, kind):
    x, target, options, tolerance = problem(kind, OPTIONS[name])
    upstream = options.pop("grad_output", None)
    _, grad = xe.cross_entropy_with_grad(x, target, grad_output=upstream, **options)
    assert_within(grad, slopes(xe.cross_entropy, x, target, upstream, options), tolerance, name)


@pytest.mark.parametrize("kind", TARGETS)
def test_slope_in_long_rows(kind):
    x, target, options, tolerance = problem(kind, OPTIONS["none"], classes=300)
    upstream = options.pop("grad_output")
    _, grad = xe.cross_entropy_with_grad(x, target, grad_output=upstream, **options)
    assert_within(grad, slopes(xe.cross_entropy, x, target, upstream, options), tolerance)
