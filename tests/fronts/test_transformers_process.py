"""Patched models in processes of their own: compiled, two that train together, peak memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILED = """
import torch
from helpers.language_models import assert_same_step, batch, causal, twin
from xentropy.transformers import patch, unpatch
from xentropy.transformers._deferred import Deferred

model = causal("granite", num_hidden_layers=1)
before, after = twin(model), twin(model)
patch(before)
assert isinstance(before(**batch()).logits, Deferred)
# "aot_eager" is all of torch.compile but the C++ compiler.
compiled = torch.compile(before, backend="aot_eager")
later = torch.compile(after, backend="aot_eager")
assert_same_step(model, later, batch())
patch(later)
for each in (compiled, later):
    theirs, ours = assert_same_step(model, each, batch())
    torch.testing.assert_close(ours.logits + 0, theirs.logits)
unpatch(compiled)
assert type(before(**batch()).logits) is torch.Tensor

@torch.compile(backend="aot_eager")
def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean()

patch(before)
outputs = before(**batch())
assert isinstance(outputs.logits, Deferred)
wanted = (theirs.logits.argmax(-1) == batch()["labels"]).float().mean()
assert accuracy(outputs.logits, batch()["labels"]) == wanted
"""


def run(code, *arguments):
    tests = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_torch_compile():
    run(COMPILED)


PROCESSES = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP
from helpers.language_models import BOUND, batch, causal, gradients, twin
from xentropy.transformers import materialised, patch

def work(rank, store):
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    inputs = batch(seed=rank, ignored=3 + 4 * rank)
    for options in ({}, {"find_unused_parameters": True}):
        found = []
        for ours in (False, True):
            model = causal("gemma2", num_hidden_layers=1)
            ddp = DDP(model, **options)
            if ours:
                patch(ddp)
            for _ in range(2):
                model.zero_grad()
                outputs = ddp(**inputs)
                outputs.loss.backward()
            found.append(gradients(model))
        for name, grad in found[0].items():
            size = grad.abs().max().item()
            torch.testing.assert_close(found[1][name], grad, rtol=0, atol=BOUND * size + 1e-8)
        gathered = [torch.empty_like(outputs.logits) for _ in range(2)]
        dist.all_gather(gathered, outputs.logits.detach())
        torch.testing.assert_close(gathered[rank], outputs.logits.detach())
    if rank == 0:
        print(materialised())
    dist.destroy_process_group()

torch.set_num_threads(1)
mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_two_processes(tmp_path):
    run(PROCESSES, tmp_path / "store")


MEMORY = """
import torch
from helpers.language_models import SIZES, twin
from transformers import LlamaConfig, LlamaForCausalLM
from xentropy.transformers import materialised, patch

def tuned(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ids = (torch.arange(3 * N).view(3, 1, N) * 7919) % 997 * 31
    for k in range(3):
        loss = model(input_ids=ids[k], labels=ids[k]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(loss.item())
    # Not ru_maxrss, which begins with the peak of the process that started this one.
    print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

V, N = 32_000, 1024
torch.manual_seed(0)
sizes = {**SIZES, "vocab_size": V, "max_position_embeddings": N}
model = LlamaForCausalLM(LlamaConfig(**sizes))
patched = twin(model)
patch(patched)
tuned(patched)
assert materialised() == {}
tuned(model)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_fine_tuning_takes_less_memory_for_the_same_curve():
    """A vocabulary of 32,000: logits of 131 MB, of which an unpatched step holds several copies.

    The patched model comes first, for the peak is that of the process so far.
    """
    printed = list(map(float, run(MEMORY).split()))
    (*ours, our_peak), (*theirs, their_peak) = printed[:4], printed[4:]
    print(f"peak: {their_peak / 1e3:.0f} MB, patched {our_peak / 1e3:.0f} MB")
    # AdamW's first steps divide by the gradient's size, so roundings of small ones count fully.
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert our_peak < their_peak - 131_000
