"""What is not installed is said in one line."""

import importlib.util


def require(*modules: str, extra: str = "bench") -> None:
    """End the program, and say what to install, if one of the modules is absent."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise SystemExit(
            f"{', '.join(absent)}: not installed; this needs: pip install -e '.[{extra}]'"
        )
