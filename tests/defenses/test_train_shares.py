"""Several processes train as one: the same losses, the same weights everywhere, files from the first one only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_vit.data import Dataset
from robustbench_vit.defenses.checkpoint import read_log
from robustbench_vit.defenses.recipe import build_recipe
from robustbench_vit.defenses.shares import Shares, averaged, find_shares, require_shares
from robustbench_vit.defenses.train import train
from robustbench_vit.errors import InputError
from tests.defenses.conftest import PGD_AT

TOLERANCE = 1e-5
"""Relative, of an epoch's loss: gradients are summed in another order."""
VALIDATION = {"share": 0.2, "seed": 0, "attack": "pgd-20", "norm": "linf", "eps": 0.1, "patience": None}
CHANGES = {
    "loss": PGD_AT,
    "augment": {"name": "shift", "pixels": 1},
    "weight_average": 0.9,
    "validation": VALIDATION,
    "epochs": 3,
    "batch_size": 32,
}


def model() -> nn.Module:
    """One whose answers hang on no draw and on no neighbour."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 2))


def samples() -> Dataset:
    """120 noisy images of two classes."""
    generator = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = 0.7 * generator.random((120, 1, 8, 8), dtype=np.float32)
    x[y == 1, :, :4] += 0.2
    ids = tuple(f"test:{i}" for i in range(120))
    return Dataset("test", "train", x, y.astype(np.int64), ids, "0" * 64, "none", 2)


PROCESS = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
root, out = sys.argv[1:]
sys.path.insert(0, root)
from robustbench_vit.cards import DefenseCard, Loaded, open_workspace
from robustbench_vit.defenses.recipe import build_recipe
from robustbench_vit.defenses.shares import find_shares
from robustbench_vit.defenses.train import train
from tests.defenses.conftest import FIELDS
from tests.defenses.test_train_shares import CHANGES, model, samples

card = DefenseCard.model_validate({**FIELDS, **CHANGES})
recipe = build_recipe(Loaded("test", Path("test.yaml"), "test.yaml", card), open_workspace(Path(root)))
shares, device = find_shares("cpu")
assert (shares.number, device.type) == (2, "cpu")

trained = model()
train(recipe, trained, samples(), None, Path(out), 0, "cpu")
last = torch.cat([p.detach().flatten() for p in trained.parameters()])
torch.save(last, Path(out).parent / f"process-{shares.index}.pt")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_processes_on_the_cpu_have_the_loss_curve_of_one(recipe, tmp_path: Path):
    pytest.importorskip("accelerate")
    root, port = Path(__file__).parents[2], str(free_port())
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"LOCAL_WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    two = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, root, tmp_path / "two"],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        trained = model()
        train(recipe(**CHANGES), trained, samples(), None, tmp_path / "one", 0)
        assert [process.wait(timeout=600) for process in two] == [0, 0]
    finally:
        for process in two:
            process.kill()
    alone, together = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [entry.epoch for entry in together] == [1, 2, 3]
    for one, other in zip(alone, together, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=TOLERANCE)
        assert other.valid_robust_accuracy == pytest.approx(one.valid_robust_accuracy, abs=0.05)
        assert other.clean_accuracy == pytest.approx(one.clean_accuracy, abs=0.02)
    assert alone[-1].loss < 0.95 * alone[0].loss  # the curve goes somewhere
    weights = [torch.load(tmp_path / f"process-{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*weights)
    ours = torch.cat([p.detach().flatten() for p in trained.parameters()])
    assert torch.allclose(ours, weights[0], rtol=1e-3, atol=1e-4)


def test_shares_are_equal_and_together_the_whole():
    rows = torch.arange(12)
    shares = [Shares(index, 3).of(rows) for index in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()
    positions = [Shares(index, 3).positions(7) for index in range(3)]
    assert sorted(at for share in positions for at in share) == list(range(7))
    assert torch.equal(Shares().of(rows), rows)


def test_running_statistics_are_averaged_with_the_gradients():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    assert averaged(net) == [net[1].running_mean, net[1].running_var]
    net(torch.rand(3, 1, 2, 2)).sum().backward()
    assert len(averaged(net)) == len(list(net.parameters())) + 2


def test_one_process_alone_changes_nothing():
    value = torch.tensor([1.0, 2.0])
    Shares().average([value])
    assert value.tolist() == [1.0, 2.0]
    assert Shares().total(torch.tensor(3)) == 3
    assert find_shares("cpu") == (Shares(), torch.device("cpu"))


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(InputError, match="a batch of 64 samples can't be cut into 3 equal shares"):
        require_shares(Shares(0, 3), 64, None)
    with pytest.raises(InputError, match="the loss 'fast-at' decides by whole batches, so it trains in one process"):
        require_shares(Shares(0, 2), 64, "fast-at")
    require_shares(Shares(0, 1), 63, "fast-at")


def test_losses_that_need_whole_batches_say_so(workspace):
    whole = {
        name for name in workspace.names("defense") if build_recipe(workspace.defense(name), workspace).whole_batch
    }
    assert whole == {"fast-at", "pgd-at-awp", "trades-awp"}


def test_without_accelerate_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"2 processes were started .* pip install 'robustbench_vit\[distributed\]'"):
        find_shares("cpu")
