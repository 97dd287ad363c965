"""What crosses the network where the classes of the logits are split over R ranks, on paper.

    python -m bench.studies.parallel [--ranks 2 8 64] [--rows 8192] [--hidden 16384]
                                     [--classes 128256] [--latency-us 5]

Nothing is measured. A collective takes its steps times the latency, and the bytes that each rank
sends over its bandwidth (Thakur, Rabenseifner and Gropp, "Optimization of collective communication
operations in MPICH", 2005), with lg = log2(R):

    all-reduce of b bytes (recursive halving, then doubling)    2 lg steps    2 b (R - 1) / R
    all-gather of b bytes from each (recursive doubling)          lg steps      b (R - 1)
    all-to-all of b bytes from each (Bruck)                       lg steps      b lg / 2

The loss of a row needs its log-sum-exp over all shards, and the logit of its target:

    three all-reduces     of the maximum, the sum of exps and the target's logit, a float32 each, as
                          Megatron-LM and torch's loss_parallel have them
    one all-gather        of what each shard knows of the row: the log-sum-exp of its classes, and
                          the target's loss among them, a float64 each. Every rank merges them
    all-to-all            of the same, to the rank that merges the row; then an all-gather of what
    and all-gather        it has found, as many bytes

Of a batch of n rows, a rank's logits take 2 n H V / R operations, and the products of backward
twice as many. A collective for some rows hides behind the products of the next, if it takes no
longer. In backward, the gradient in the hidden states is added up over the ranks: an all-reduce of
2 H bytes a row (bfloat16; twice as many in float32).
"""

import argparse
import math

from ..tables import Table, number

RANKS = (2, 4, 8, 16, 64, 256, 1024)
BANDWIDTHS = {"25 Gbit/s": 25e9 / 8, "400 Gbit/s": 400e9 / 8}  # bytes a second, of each rank
RATES = {"2 Tflop/s": 2e12, "400 Tflop/s": 4e14}  # of the products: a CPU, an accelerator

REDUCED = 4  # bytes a row in each of the three all-reduces
SHARD = 16  # bytes a row that a shard knows
FOUND = 16  # bytes a row that the merge has found
# Of each weight: bfloat16; a float32 gradient; float32 weight and two moments of Adam.
WEIGHT, GRADIENT, OPTIMIZER, LOGIT = 2, 4, 12, 4


def all_reduce(b, ranks):
    """(steps, bytes that a rank sends) to reduce b bytes."""
    return 2 * math.log2(ranks), 2 * b * (ranks - 1) / ranks


def all_gather(b, ranks):
    """The same for b bytes from each rank."""
    return math.log2(ranks), b * (ranks - 1)


def all_to_all(b, ranks):
    """The same for b bytes of each rank, an equal part of them for every rank."""
    return math.log2(ranks), b * math.log2(ranks) / 2


def in_turn(*collectives):
    """Steps and bytes of one after the other."""
    return tuple(map(sum, zip(*collectives, strict=True)))


def three_all_reduces(rows, ranks):
    return in_turn(*[all_reduce(REDUCED * rows, ranks)] * 3)


def one_all_gather(rows, ranks):
    return all_gather(SHARD * rows, ranks)


def merged_by_rows(rows, ranks):
    return in_turn(all_to_all(SHARD * rows, ranks), all_gather(FOUND * rows / ranks, ranks))


WAYS = {
    "three all-reduces": three_all_reduces,
    "one all-gather": one_all_gather,
    "all-to-all, all-gather": merged_by_rows,
}
HIDDEN = "gradient of the hidden states"


def seconds(collective, latency, bandwidth):
    steps, sent = collective
    return steps * latency + sent / bandwidth


def product_seconds(rows, ranks, hidden, classes, rate):
    """The logits of a rank's shard."""
    return 2 * rows * hidden * classes / ranks / rate


def most_ranks(way, hidden, classes, rate, bandwidth):
    """Up to how many ranks, as a power of 2, the bytes of a row hide behind its logits."""
    ranks = 1
    while True:
        _, sent = way(1, 2 * ranks)
        if sent / bandwidth > product_seconds(1, 2 * ranks, hidden, classes, rate):
            return ranks
        ranks *= 2


def input_gradient(hidden):
    """The all-reduce of the gradient in the hidden states, as a way."""
    return lambda rows, ranks: all_reduce(2 * hidden * rows, ranks)


def traffic(given):
    rows = []
    for ranks in given.ranks:
        found = [way(1, ranks) for way in (*WAYS.values(), input_gradient(given.hidden))]
        rows.append([str(ranks), *(f"{number(b)} B, {s:g}" for s, b in found)])
    columns = ["ranks", *WAYS, HIDDEN]
    return Table("Bytes that a rank sends for each row, and steps", columns, rows)


def times(given, name):
    """Milliseconds for all rows, and those of the products behind which they may hide."""
    latency, bandwidth, rows = given.latency_us * 1e-6, BANDWIDTHS[name], []
    ways = (*WAYS.values(), input_gradient(given.hidden))
    for ranks in given.ranks:
        taken = [seconds(way(given.rows, ranks), latency, bandwidth) for way in ways]
        size = given.rows, ranks, given.hidden, given.classes
        taken += [product_seconds(*size, rate) for rate in RATES.values()]
        rows.append([str(ranks), *(number(1e3 * t) for t in taken)])
    columns = ["ranks", *WAYS, HIDDEN]
    columns += [f"logits at {rate}" for rate in RATES]
    return Table(f"Milliseconds for {given.rows:,} rows at {name}", columns, rows)


def sooner_rows(ranks, latency, bandwidth):
    """Up to how many rows one all-gather takes less time than three all-reduces."""
    few, bytes_of_few = one_all_gather(1, ranks)
    many, bytes_of_many = three_all_reduces(1, ranks)
    return (many - few) * latency * bandwidth / (bytes_of_few - bytes_of_many)


def sooner(given):
    rows = []
    for ranks in given.ranks:
        each = [sooner_rows(ranks, given.latency_us * 1e-6, b) for b in BANDWIDTHS.values()]
        rows.append([str(ranks), *(f"{n:,.0f}" for n in each)])
    title = "Up to how many rows at a time one all-gather is sooner than three all-reduces"
    return Table(title, ["ranks", *BANDWIDTHS], rows)


def limits(given):
    rows, size = [], (given.hidden, given.classes)
    for name, bandwidth in BANDWIDTHS.items():
        for rate_name, rate in RATES.items():
            found = [most_ranks(way, *size, rate, bandwidth) for way in WAYS.values()]
            # its products are twice as long
            found.append(most_ranks(input_gradient(given.hidden), *size, rate / 2, bandwidth))
            rows.append([f"{name}, {rate_name}", *(f"{n:,}" for n in found)])
    columns = ["network, products", *WAYS, HIDDEN]
    return Table("Up to how many ranks the bytes hide behind the products", columns, rows)


def memory(given):
    rows = []
    for ranks in (1, *given.ranks):
        weights, logits = given.hidden * given.classes / ranks, given.rows * given.classes / ranks
        parts = [weights * each for each in (WEIGHT, GRADIENT, OPTIMIZER)] + [LOGIT * logits]
        rows.append([str(ranks), *(number(b / 1e9) for b in (*parts, sum(parts)))])
    columns = ["ranks", "weight", "gradient", "optimizer", "logits", "in all"]
    return Table(f"GB of a rank, with the logits of {given.rows:,} rows", columns, rows)


def tables(given):
    by_bandwidth = [times(given, name) for name in BANDWIDTHS]
    return [memory(given), traffic(given), sooner(given), *by_bandwidth, limits(given)]


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="powers of 2")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=16384)
    parser.add_argument("--classes", type=int, default=128_256)
    parser.add_argument("--latency-us", type=float, default=5.0)
    given = parser.parse_args(words)
    for ranks in given.ranks:
        if ranks < 2 or ranks & (ranks - 1):
            parser.error(f"--ranks {ranks}: not a power of 2 above 1")
    return given


def main(words=None):
    for table in tables(arguments(words)):
        print(f"\n{table.title}\n")
        table.show()


if __name__ == "__main__":
    main()
