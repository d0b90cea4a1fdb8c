"""Two processes: the scorer's gradients are those of one process, and only the scorer is synchronised."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from integrations import tiny
from torch import distributed
from torch.multiprocessing import spawn
from training import ddp_worker, kit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch without gloo"),
]


def test_gradients_equal_one_process(tmp_path: Path) -> None:
    spawn(ddp_worker.gradients, (2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for family in kit.FAMILIES:
        rows = kit.rows(family)
        for gate in ("attention", "multiply"):
            name = f"{family}/{gate}"
            t = kit.trainable(family, gate=gate)
            for case, joint in (("", rows), ("/text", [rows[0], rows[2]]), ("/again", [rows[0], rows[2]])):
                t.zero_grad()
                t(**tiny.batch(joint))["loss"].backward()
                for rank in ranks:
                    kit.assert_near(rank[name + case], kit.gradients(t), rtol=1e-3)
                for one, other in zip(
                    ranks[0][name + case].values(), ranks[1][name + case].values(), strict=True
                ):
                    assert torch.equal(one, other)
            # rank 0's scorer everywhere; every rank keeps the backbone it came with
            for rank in ranks:
                assert all(torch.equal(v, rank[f"{name}/scorer"][k]) for k, v in kit.weights(t).items())
            difference = ranks[1][f"{name}/backbone"] - ranks[0][f"{name}/backbone"]
            torch.testing.assert_close(difference, torch.ones_like(difference))


def test_the_trainer_in_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(ddp_worker.train, (2, str(tmp_path), port), nprocs=2)
    ddp_worker.train(0, 1, str(tmp_path), port)
    alone = torch.load(tmp_path / "trained1_0.pt", weights_only=True)
    for rank in (0, 1):
        together = torch.load(tmp_path / f"trained2_{rank}.pt", weights_only=True)
        kit.assert_near(together, alone, rtol=1e-4)
