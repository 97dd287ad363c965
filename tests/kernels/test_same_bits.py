"""The same bits on every machine whose tier has fused multiply-add: AVX2, AVX-512, NEON.

The digests are those of results, not of a tier: whoever changes one changes what users get, and
says so in CHANGELOG.md. `PYTHONPATH=tests python tests/kernels/test_same_bits.py` prints them.
"""

import hashlib

import numpy as np
import pytest
from helpers.tiers import FUSED, HERE

import xentropy as xe
from xentropy import _kernels

# Around the lengths at which sums are cut in vectors, lines, chunks and parts of a row.
CLASSES = (2, 3, 4, 5, 8, 9, 10, 16, 17, 24, 33, 63, 100, 150, 192, 193, 300, 320, 321, 1000, 4099)
LONG = (20_000, 50_257)

OPTIONS = {
    "plain": {},
    "confident": {"logit_scale": 8.0},
    "certain": {"logit_scale": 64.0},
    "label_smoothing": {"label_smoothing": 0.125},
    "certain, label_smoothing": {"logit_scale": 64.0, "label_smoothing": 0.125},
    "z_loss": {"z_loss": 0.001},
    "logit_scale": {"logit_scale": 0.7},
    "weight": {"weight": True},
    "weight, label_smoothing": {"weight": True, "label_smoothing": 0.125},
    "grad_output": {"grad_output": 2.0**40},
    "certain, grad_output": {"logit_scale": 64.0, "grad_output": 2.0**40},
}

DIGESTS = {
    "float16": {
        "plain": "c6549f06dcd8bcdf",
        "confident": "aa311d550ae30900",
        "certain": "25707f546244c5e3",
        "label_smoothing": "caf1f4cc5921fc64",
        "certain, label_smoothing": "cab499ac4b4fb769",
        "z_loss": "b3e0dd7d5ed81df5",
        "logit_scale": "971056b4caa40dda",
        "weight": "42578d3c503d1b06",
        "weight, label_smoothing": "0df46b95b2d7594a",
        "grad_output": "26bfa3d6a5d79872",
        "certain, grad_output": "d4133c02e9838cbe",
        "probabilities": "4f7a58491c572ad0",
        "softmax family": "4d8fa15709b2716e",
        "statistics": "5848a0e3681a02a1",
        "log-probabilities": "ae0980842ee0101a",
        "distillation": "5de1518a9a1f360b",
    },
    "bfloat16": {
        "plain": "3f14c3369d65c324",
        "confident": "4f736df1713a4977",
        "certain": "49c1fc0446026a9d",
        "label_smoothing": "4e505d0d283271ea",
        "certain, label_smoothing": "0bba526a54bf4b3d",
        "z_loss": "8b3e4cc1a7976dc5",
        "logit_scale": "1dd55cd5841c92c7",
        "weight": "e774c42aafecbfcf",
        "weight, label_smoothing": "274299eb8e2e31a3",
        "grad_output": "1d22a5c756d867bb",
        "certain, grad_output": "a0c52e23aab92df8",
        "probabilities": "23b093f240367db6",
        "softmax family": "906cc3cac06202cb",
        "statistics": "713a0f96caf681a2",
        "log-probabilities": "c648a07d8e0110fc",
        "distillation": "152fa2a3b1d56c2d",
    },
    "float32": {
        "plain": "a7abd8fafc7647ab",
        "confident": "54da3ba044d6063e",
        "certain": "4e0f459ecb4b03c1",
        "label_smoothing": "a8d4d80c168bc07b",
        "certain, label_smoothing": "aa1dc9eb09502e51",
        "z_loss": "69ed300bf8b6fd0e",
        "logit_scale": "6c99475cbe178128",
        "weight": "02370d3042de9c5a",
        "weight, label_smoothing": "de22257d270b099a",
        "grad_output": "5683a12c8389f09f",
        "certain, grad_output": "86e7481359b03c95",
        "probabilities": "bc5791572abff6e9",
        "softmax family": "673adef5bdf5ee84",
        "statistics": "d5b0cbf1a10d63bc",
        "log-probabilities": "ff7691121da5e3aa",
        "distillation": "6d652d907201b2f4",
    },
    "float64": {
        "plain": "a05f98a95d5e24c0",
        "confident": "da20438163adf57d",
        "certain": "2db7431de92b466b",
        "label_smoothing": "1f485a1a364f4ad5",
        "certain, label_smoothing": "e913aab8ba54db7b",
        "z_loss": "be5d9d004244bce7",
        "logit_scale": "a31ba25952dc4d2c",
        "weight": "e6a1b4434d6b8470",
        "weight, label_smoothing": "5f5a227951f77d39",
        "grad_output": "61d975dfac4e6add",
        "certain, grad_output": "2f8b1a2223a45386",
        "probabilities": "3f60fd06b43fed02",
        "softmax family": "bd99b318567353c8",
        "statistics": "34f0a974a46955bf",
        "log-probabilities": "c967ce99bf908afc",
        "distillation": "7624c964d7cbe98d",
    },
}


def numbers(shape, seed, dtype):
    """Multiples of 2^-16 in [-8, 8): no library function has a say in them."""
    whole = np.random.Generator(np.random.PCG64(seed)).integers(-(1 << 19), 1 << 19, shape)
    return (whole / 65536).astype(dtype)


def digest(arrays):
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def losses_and_gradients(dtype, options):
    options = dict(options)
    weighted = options.pop("weight", False)
    shapes = [(24, c) for c in CLASSES] + [(2, c) for c in LONG if len(options) == weighted]
    shapes += [(2, c, 7, 5) for c in (3, 21, 400)]
    for seed, shape in enumerate(shapes):
        x, y = numbers(shape, seed, dtype), np.arange(shape[0] * np.prod(shape[2:], dtype=int))
        y = (y * 7 % shape[1]).reshape(shape[0], *shape[2:])
        weight = 1 + np.arange(shape[1]) % 5 / 4 if weighted else None
        if "grad_output" not in options:
            yield xe.cross_entropy(x, y, weight, **options)
        yield from xe.cross_entropy_with_grad(x, y, weight, reduction="none", **options)


def of_probabilities(dtype):
    for seed, classes in enumerate(CLASSES + LONG):
        x = numbers((8, classes), seed, dtype)
        p = np.abs(numbers((8, classes), seed + 100, np.float32)) / 64
        yield from xe.cross_entropy_with_grad(x, p, reduction="none")


def of_softmax(dtype):
    for seed, classes in enumerate(CLASSES + LONG):
        x = numbers((8, classes), seed, dtype)
        for function in (xe.softmax, xe.log_softmax, xe.logsumexp, xe.entropy):
            yield function(x, axis=-1)


def of_statistics(dtype):
    for seed, classes in enumerate(CLASSES + LONG):
        x, y = numbers((24, classes), seed, dtype), np.arange(24) * 7 % classes
        for scale in (1.0, 0.7, 64.0):
            yield from xe.row_statistics(x, y, logit_scale=scale)


def of_log_probs(dtype):
    for seed, classes in enumerate(CLASSES + LONG):
        x, y = numbers((24, classes), seed, dtype), np.arange(48).reshape(24, 2) * 7 % classes
        for scale in (1.0, 0.7, 64.0):
            found = xe.selected_log_probs(x, y, logit_scale=scale)
            yield from found
            saved = found.lse, found.log_prob, found.entropy
            for upstream in ((1.0, None), (-0.5, 0.25), (2.0**40, -1.0)):
                yield xe.selected_log_probs_grad(x, y, *saved, *upstream, logit_scale=scale)


def of_distillation(dtype):
    for seed, classes in enumerate(CLASSES + LONG):
        x, y = numbers((24, classes), seed, dtype), numbers((24, classes), seed + 100, dtype)
        for beta in (0.0, 0.5, 1.0):
            for temperature in (1.0, 0.75, 0.125):
                options = {"temperature": temperature, "reduction": "none"}
                yield from xe.distillation_loss_with_grad(x, y, beta=beta, **options)


def cases(dtype):
    for name, options in OPTIONS.items():
        yield name, losses_and_gradients(dtype, options)
    yield "probabilities", of_probabilities(dtype)
    yield "softmax family", of_softmax(dtype)
    yield "statistics", of_statistics(dtype)
    yield "log-probabilities", of_log_probs(dtype)
    yield "distillation", of_distillation(dtype)


@pytest.mark.parametrize("tier", [tier for tier in HERE if tier in FUSED], indirect=True)
def test_the_digests_of_results(tier, dtype):
    found = {name: digest(results) for name, results in cases(dtype)}
    assert found == DIGESTS[dtype.name]


def test_no_exp_that_differs_between_tiers_decides_a_tie():
    """Half of the logits are so low that their exps are subnormal, or 0 in other tiers. The others
    have few digits, so that the products of their exps and distances are often ties."""
    random = np.random.Generator(np.random.PCG64(0))
    x = random.integers(-64, 1, (640, 2048)) / 8
    low = np.arange(x.shape[1]) % 64 < 32  # they are added before the others
    x[:, low] = random.integers(-111 * 256, -95 * 256, x[:, low].shape) / 256
    x[:, 5] = 0
    found = []
    for tier in set(HERE) & set(FUSED):
        before = _kernels.use_tier(tier)
        found.append(xe.selected_log_probs(x.astype(np.float32), [[7]] * 640).entropy)
        _kernels.use_tier(before)
    assert all(np.array_equal(each, found[0]) for each in found)


if __name__ == "__main__":
    import ml_dtypes

    print("tier", _kernels.tier())
    for each in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        print(f'    "{np.dtype(each).name}": {{')
        for case, arrays in cases(each):
            print(f'        "{case}": "{digest(arrays)}",')
        print("    },")
