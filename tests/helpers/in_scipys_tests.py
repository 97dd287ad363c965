"""A plugin of pytest: SciPy's own tests of the softmax family find xentropy's functions."""

import xentropy as xe


def pytest_collection_finish(session):
    """Of every test's module, whose names of the functions are read when the test runs."""
    for module in {item.module for item in session.items}:
        for name in ("logsumexp", "softmax", "log_softmax"):
            assert getattr(module, name).__module__.startswith(("scipy.", "xentropy."))
            setattr(module, name, getattr(xe, name))
