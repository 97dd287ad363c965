"""Random calls of every public function against the reference.

    python -m tests.fuzz --minutes 60 --seed 1

Half of the calls are valid and must give the answer of xentropy.reference. In the others one
argument is spoiled: they raise TypeError, ValueError, IndexError or MemoryError, or are right all
the same. No call writes anywhere but to its result, and none that is refused writes at all; none
crashes or hangs. A call depends on the seed and its number alone: `--first 1234 --calls 1`
repeats one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from .answers import ERRORS, Trial, Wrong

HANGS = 300  # seconds without another call; the longest takes one, with sanitizers ten
REPORT = 60  # seconds between two lines of progress


def run(call):
    """What became of it, in one word for the statistics; Wrong if it should not have."""
    try:
        result = call.run()
    except ERRORS as error:
        call.check_untouched(None)
        if call.spoiled is None:
            raise Wrong(f"a valid call is refused: {type(error).__name__}: {error}") from error
        return type(error).__name__
    except Exception as error:
        raise Wrong(f"{type(error).__name__} is no error of a library: {error}") from error
    call.check_untouched(result)
    call.check_answer(result)
    return "right" if call.spoiled is None else "right though spoiled"


def work(seed, first, calls, until, place, keep_going):
    """One process of calls; `place` holds the number of the one that runs."""
    warnings.simplefilter("ignore", UserWarning)  # of what is hardly meant
    outcomes, number = Counter(), first
    np.seterr(all="ignore")  # of the reference; the kernels' are looked at in check_answer
    report = time.monotonic() + REPORT
    while number < first + calls and time.monotonic() < until:
        os.pwrite(place, number.to_bytes(8, "little"), 0)
        call = Trial(seed, number)
        try:
            outcomes[call.name, run(call)] += 1
        except Wrong:
            print(f"\ncall {number} of seed {seed} (spoiled: {call.spoiled})\n{call}\n")
            traceback.print_exc(file=sys.stdout)
            outcomes[call.name, "WRONG"] += 1
            if not keep_going:
                break
        number += 1
        if time.monotonic() > report:
            report += REPORT
            print(f"{number - first} calls", flush=True)
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{name:<24} {outcome:<22} {count:>9}")
    print(f"{'all':<24} {'':<22} {outcomes.total():>9}")
    return int(any(outcome == "WRONG" for _, outcome in outcomes))


def watch(arguments):
    """The same in a process of its own, so that a crash or a hang has a number too."""
    with tempfile.NamedTemporaryFile() as place:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", *arguments]
        worker = subprocess.Popen([*command, "--place", place.name])
        seen, since = None, time.monotonic()
        while worker.poll() is None:
            time.sleep(0.2)
            number = Path(place.name).read_bytes()
            if number != seen:
                seen, since = number, time.monotonic()
            elif time.monotonic() - since > HANGS:
                worker.kill()
        if worker.returncode not in (0, 1):
            number = int.from_bytes(Path(place.name).read_bytes(), "little")
            print(f"call {number} ends the process with {worker.returncode}")
        return worker.returncode and 1


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--keep-going", action="store_true", help="after a wrong call, too")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.place is None:
        return watch(arguments)
    with Path(a.place).open("r+b") as place:
        until = time.monotonic() + 60 * a.minutes
        return work(a.seed, a.first, a.calls, until, place.fileno(), a.keep_going)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
