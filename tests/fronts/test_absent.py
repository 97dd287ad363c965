"""xentropy without torch: the core does not ask for it, the front says what to install."""

import subprocess
import sys

ABSENT = """
import sys
sys.modules["torch"] = None
import xentropy
try:
    import xentropy.torch
except ImportError as error:
    assert 'pip install "xentropy-cpu[torch]"' in str(error), error
else:
    raise SystemExit("imported")
"""


def test_the_error_says_what_to_install():
    subprocess.run([sys.executable, "-c", ABSENT], check=True, timeout=300)


def test_the_core_does_not_import_torch():
    code = "import sys, xentropy; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
