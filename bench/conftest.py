"""Benchmarks run one at a time, whatever pyproject.toml says of tests."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.numprocesses = 0
    config.option.dist = "no"
