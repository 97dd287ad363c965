"""Loss and gradient against torch and against the plain copy of this machine.

    python bench/speed.py [1024x32000 ...] [--dtype float32] [--threads 2] [--rounds 15]

Every way is timed once a round, one after the other, so that all of them meet the same
neighbours on the machine; the table shows medians. Gel/s is N * C / time, in 1e9. The copy
moves as many bytes: it reads the logits once and writes the gradient once.
"""

import argparse
import importlib.metadata
import statistics
import time

import numpy as np
from ceiling import LINE, stream_copy

import xentropy as xe
from xentropy import _kernels

try:
    import torch
except ImportError:
    torch = None


def aligned(values):
    """A copy that starts at a cache line, as the ceiling wants it."""
    raw = np.empty(values.nbytes + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    copy = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    np.copyto(copy, values)
    return copy


class Case:
    """One shape: its data, and the ways to compute on it, by name."""

    def __init__(self, rows, classes, dtype, threads):
        rng = np.random.default_rng(0)
        self.logits = aligned(rng.standard_normal((rows, classes), np.float32).astype(dtype))
        self.target = rng.integers(classes, size=rows)
        self.out = aligned(self.logits)
        self.scratch = aligned(self.logits)
        self.threads = threads
        self.ways = {
            "copy": self.copy,
            "xentropy, out=": lambda: self.xentropy(self.logits, self.out),
            "xentropy, in place": lambda: self.xentropy(self.scratch, self.scratch),
            "xentropy, fresh output": lambda: self.xentropy(self.logits, None),
            "xentropy, loss only": self.xentropy_loss,
        }
        if torch is not None:
            self.torch_logits = torch.from_numpy(self.logits).requires_grad_()
            self.torch_target = torch.from_numpy(self.target)
            self.ways["torch, eager"] = self.torch
            self.ways["torch, loss only"] = self.torch_loss

    def copy(self):
        stream_copy(self.logits, self.out, self.threads)

    def xentropy(self, logits, out):
        return xe.cross_entropy_with_grad(logits, self.target, out=out, n_threads=self.threads)

    def xentropy_loss(self):
        return xe.cross_entropy(self.logits, self.target, n_threads=self.threads)

    def torch(self):
        loss = torch.nn.functional.cross_entropy(self.torch_logits, self.torch_target)
        return torch.autograd.grad(loss, self.torch_logits)

    def torch_loss(self):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(self.torch_logits, self.torch_target)

    def seconds(self, rounds):
        """Median time of every way. The first round warms up and does not count."""
        times = {name: [] for name in self.ways}
        for _ in range(rounds + 1):
            for name, way in self.ways.items():
                np.copyto(self.scratch, self.logits)
                time.sleep(0.01)  # the threads of another library spin for a while
                start = time.perf_counter()
                result = way()
                times[name].append(time.perf_counter() - start)
                del result
        return {name: statistics.median(each[1:]) for name, each in times.items()}


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return "unknown CPU"


def print_machine(threads, rounds):
    config = _kernels.config()
    distributions = ["xentropy-cpu", "numpy", *(["torch"] if torch else [])]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in distributions)
    print(f"{cpu_name()}, {config['tier']}, {config['compiler']}, {threads} threads")
    print(f"{', '.join(versions)}; medians of {rounds} alternating rounds\n")


def print_case(shape, dtype, seconds):
    elements = shape[0] * shape[1]
    print(f"| {shape[0]}x{shape[1]} {dtype} | ms | Gel/s | times torch | % of the copy |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, taken in seconds.items():
        peer = seconds.get("torch, loss only" if "loss only" in name else "torch, eager")
        ratio = f"{peer / taken:.1f}" if peer and name != "copy" else ""
        percent = "" if "loss only" in name else f"{100 * seconds['copy'] / taken:.0f}"
        rate = elements / taken / 1e9
        print(f"| {name} | {taken * 1e3:.2f} | {rate:.2f} | {ratio} | {percent} |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=["1024x32000", "8192x1000"])
    parser.add_argument("--dtype", default="float32", choices=["float16", "float32", "float64"])
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(args.threads)
    print_machine(args.threads, args.rounds)
    for text in args.shapes:
        shape = tuple(map(int, text.split("x")))
        case = Case(*shape, args.dtype, args.threads)
        print_case(shape, args.dtype, case.seconds(args.rounds))


if __name__ == "__main__":
    main()
