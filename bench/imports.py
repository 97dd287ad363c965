"""What `import xentropy` costs beyond `import numpy`, which it needs.

    python -m bench.imports [--rounds 21]

Milliseconds of whole processes, which import either and end, in turn; medians. At most 15 ms is
what the project allows itself. Below, what took longest of it (`python -X importtime`).
"""

import argparse
import statistics
import subprocess
import sys
import time

ALLOWED = 15  # ms
PROGRAMS = {"numpy": "import numpy", "xentropy": "import numpy, xentropy"}


def milliseconds(program: str) -> float:
    """Of a process that runs the program."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return 1e3 * (time.perf_counter() - began)


def measure(rounds: int) -> dict[str, float]:
    """Median milliseconds by program; a first round, which fills the page cache, is dropped."""
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds + 1):
        for name, program in PROGRAMS.items():
            taken[name].append(milliseconds(program))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def slowest_modules(count: int) -> list[tuple[float, str]]:
    """Own milliseconds and names of the modules that xentropy brings beyond NumPy's."""
    program = "import numpy, sys; print('--', file=sys.stderr); import xentropy"
    command = [sys.executable, "-X", "importtime", "-c", program]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = said.partition("--\n")[2].splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines]
    return sorted(((int(own) / 1e3, name.strip()) for own, _, name in rows), reverse=True)[:count]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.imports", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args(arguments).rounds
    medians = measure(rounds)
    beyond = medians["xentropy"] - medians["numpy"]
    print(
        f"import numpy {medians['numpy']:.1f} ms, xentropy {beyond:.1f} ms more; {ALLOWED} allowed"
    )
    for own, name in slowest_modules(8):
        print(f"{own:8.2f} ms  {name}")


if __name__ == "__main__":
    main()
