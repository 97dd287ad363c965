"""Evaluate logits in files by the ranks of torch.distributed."""

from functools import reduce

import numpy as np
import torch.distributed as dist

import xentropy as xe

STEP = 500  # rows at a time

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

logits = np.load("logits.npy", mmap_mode="r")
target = np.load("target.npy", mmap_mode="r")
mine = xe.Evaluation()
for start in range(STEP * rank, len(target), STEP * ranks):
    rows = slice(start, start + STEP)
    mine.update(logits[rows], target[rows])

every = [None] * ranks
dist.all_gather_object(every, mine)
if rank == 0:
    print(reduce(xe.Evaluation.merge, every).result())
dist.destroy_process_group()
