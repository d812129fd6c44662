"""Kill -9 while a store is written, in a process of its own, and go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from data_fixtures import SITE, tiny_corpus, tiny_model

from hooke.data.pool import Pool
from hooke.data.store import Store, write_store
from hooke.data.writing import StoreOptions

OPTIONS = StoreOptions(context=12, batch=3, shard_rows=40, shards_per_buffer=2)
SITES = ["resid_post.1", "mlp_post.0"]
N_SHARDS = 20

CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from hooke.base import files
import test_kill
real, count = files.save_file, 0

def killing(tensors, path, metadata=None):
    global count
    count += 1
    if count == int(sys.argv[3]):
        Path(path).write_bytes(b"half of a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors, path, metadata)

files.save_file = killing
test_kill.write(sys.argv[2])
"""


def write(folder):
    return write_store(folder, tiny_model(), tiny_corpus(13), SITES, n_tokens=790, options=OPTIONS)


def test_killed_twice_the_shards_have_the_same_bytes_as_never_killed(tmp_path):
    source = Path(sys.modules[Store.__module__].__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    where = random.SystemRandom().randint(3, 12)
    for count in (where, 5):
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "killed"), str(count)]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert list((tmp_path / "killed").glob(".tmp-*"))  # what the kill left behind
    killed, whole = write(tmp_path / "killed"), write(tmp_path / "whole")
    names = sorted(path.name for path in whole.path.iterdir())
    assert names == sorted(path.name for path in killed.path.iterdir())
    assert len(killed.shard_rows) == N_SHARDS
    for name in set(names) - {"checked.json"}:
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes(), (name, where)
    batches = [list(Pool(store, batch=32, rows=64)) for store in (killed, whole)]
    assert all((a[SITE] == b[SITE]).all() for a, b in zip(*batches, strict=True))
