"""Libraries that some tests need and that need not be there."""

from importlib.util import find_spec

# Test files, and what they cannot do without.
NEEDED = {
    "fronts/test_torch*.py": ["torch"],
    "fronts/test_torch_opinfo.py": ["torch", "expecttest"],
    "fronts/test_jax*.py": ["jax", "optax"],
    "bench/test_fronts.py": ["rich"],
}


def missing(libraries):
    return [name for name in libraries if find_spec(name) is None]
