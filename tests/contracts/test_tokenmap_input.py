"""What Selection and Assignment refuse, where they cannot look, and weights at the ends of the range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tokenops import Assignment, Selection, TokenOpsError
from tokenops.tokenmap import checks

INDEX, VALID = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    "fields",
    [
        (INDEX[0], VALID, 3),
        (INDEX.int(), VALID, 3),
        (INDEX, VALID[:, :1], 3),
        (INDEX, VALID.long(), 3),
        (INDEX, VALID.to("meta"), 3),
        ([[0, 2]], VALID, 3),
        (INDEX, VALID, 0),
        (INDEX, VALID, -1),
        (INDEX, VALID, "3"),
        (INDEX, VALID, 3.0),
        (INDEX, VALID, True),
        (INDEX, VALID, None),
        (INDEX, VALID, 2),
        (INDEX - 1, VALID, 3),
        (INDEX, ~VALID, 2),
        (INDEX, VALID, 3, torch.ones(1, 2)),
        (INDEX, VALID, 3, torch.ones(1, 3, dtype=torch.long)),
        (INDEX, VALID, 3, None, torch.ones(2, 3)),
    ],
)
def test_bad_selections(fields: Any) -> None:
    with pytest.raises(TokenOpsError, match="Selection"):
        Selection(*fields)


def test_bad_arguments() -> None:
    chosen, x = Selection(INDEX, VALID, 3), torch.zeros(1, 3, 4)
    merged = Assignment(torch.tensor([[0, 0, 1]]), torch.ones(1, 3), 2, torch.tensor([[0, 2]]))
    calls = [
        lambda: Selection.from_mask(torch.ones(1, 3)),  # type: ignore[arg-type]
        lambda: Selection.from_mask(VALID, 3),
        lambda: chosen.reduce(x[:, :2]),
        lambda: chosen.reduce(x.to("meta")),
        lambda: chosen.lift(x, into=x),
        lambda: chosen.lift(x[:, :2].double(), into=x),
        lambda: chosen.lift(x[:, :2, :2], into=x),
        lambda: chosen.scatter(torch.zeros(1, 2, dtype=torch.long), 5),
        lambda: chosen.scatter(torch.zeros(1, 3, dtype=torch.long), 5, valid=VALID),
        lambda: chosen.scatter(torch.zeros(1, 3, dtype=torch.long), 5, rows=torch.zeros(2, dtype=torch.long)),
        lambda: chosen.scatter(torch.tensor([[0, 1, 5]]), 5),
        lambda: chosen.scatter(torch.tensor([[0, 1, -2]]), 5),
        lambda: chosen.scatter(torch.tensor([[0, 1, 2]]), 5, rows=torch.tensor([1])),
        lambda: chosen.scatter(torch.tensor([[0, 1, 2]]), 5, rows=torch.tensor([-1])),
        lambda: merged.reduce(x[:, :2]),
        lambda: merged.lift(x, into=x),
        lambda: merged.lift(x[:, :2].double(), into=x),
        lambda: merged.scatter(torch.zeros(1, 2, dtype=torch.long), 5),
        lambda: merged.scatter(torch.tensor([[0, 1, 5]]), 5),
        lambda: merged.scatter(torch.tensor([[0, 1, 2]]), 5, rows=torch.tensor([1])),
        lambda: Assignment(merged.group + 1, merged.weight, 2, merged.anchor),
        lambda: Assignment(merged.group - 2, merged.weight, 2, merged.anchor),
        lambda: Assignment(merged.group, merged.weight, 2, merged.anchor + 1),
        lambda: Assignment(merged.group, merged.weight, 2, merged.anchor - 2),
        lambda: Assignment(merged.group, -merged.weight, 2, merged.anchor),
        lambda: Assignment(merged.group, merged.weight * torch.nan, 2, merged.anchor),
        lambda: Assignment(merged.group, merged.weight * torch.inf, 2, merged.anchor),
        lambda: Assignment(merged.group, merged.weight, 3, merged.anchor),
        lambda: Assignment(merged.group, merged.weight.long(), 2, merged.anchor),
        lambda: Assignment(merged.group, merged.weight.to("meta"), 2, merged.anchor),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except TokenOpsError:
            continue
        pytest.fail(f"call {number} must raise TokenOpsError")


def test_the_error_names_the_value() -> None:
    with pytest.raises(TokenOpsError, match=r"Selection: index in \[0, 4\), got 5"):
        Selection(torch.tensor([[5], [0]]), torch.ones(2, 1, dtype=torch.bool), 4)
    chosen = Selection.from_mask(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(TokenOpsError, match=r"rows in \[0, 2\), got -1"):
        chosen.scatter(torch.tensor([[0, 1], [0, 1]]), 4, rows=torch.tensor([0, -1]))
    with pytest.raises(TokenOpsError, match=r"rows in \[0, 2\), got 2"):
        chosen.scatter(torch.tensor([[0, 1], [0, 1]]), 4, rows=torch.tensor([0, 2]))


def test_values_that_cannot_be_read_are_not_checked() -> None:
    x, index = torch.arange(12).view(2, 3, 2), torch.tensor([[0, 2], [1, 2]])

    def reduce(index: Tensor, x: Tensor) -> Tensor:
        positions = torch.arange(3, device=x.device).expand(2, 3)
        group = torch.zeros_like(positions)
        checks.flat_places("scatter", positions + 0 * index.sum(), 4, index[:, 0] * 0, None, (2, 3))
        Assignment(group + 0 * index.sum(), torch.ones_like(group).float(), 1, index[:, :1])
        return Selection(index, index >= 0, 3).reduce(x)

    expected = reduce(index, x)
    assert torch.equal(torch.vmap(reduce)(torch.stack([index] * 2), torch.stack([x] * 2))[1], expected)
    assert reduce(index.to("meta"), x.to("meta")).shape == expected.shape
    with FakeTensorMode() as mode:
        assert reduce(mode.from_tensor(index), mode.from_tensor(x)).shape == expected.shape


def test_compiles_in_one_graph() -> None:
    x, index = torch.randn(2, 3, 4), torch.tensor([[0, 2], [1, 2]])

    def reduce(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        merged = Assignment(torch.zeros_like(x[..., 0]).long(), x[..., 0].exp(), 1, index[:, :1])
        return Selection(index, index >= 0, x.shape[1]).reduce(x), merged.reduce(x)

    compiled = torch.compile(reduce, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, expected in zip(compiled(x, index), reduce(x, index), strict=True):
        torch.testing.assert_close(got, expected)


def test_on_cuda_the_device_asserts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of CUDA: nothing but the assertion decides."""

    class Away(Tensor):
        device, is_cuda = torch.device("cuda"), True  # type: ignore[assignment]

    monkeypatch.setattr(checks, "_extremes", lambda tensor: pytest.fail("a value was read"))
    checks.check_range("Selection", "index", torch.tensor([[0, 3]]).as_subclass(Away), 0, 4)
    for outside in (-1, 4):
        with pytest.raises(RuntimeError, match=r"Selection: index in \[0, 4\)"):
            checks.check_range("Selection", "index", torch.tensor([[0, outside]]).as_subclass(Away), 0, 4)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.0, 3e38])
def test_means_of_weights_of_any_size(size: float) -> None:
    weight = torch.tensor([[size, size, 1.0, 3.0]], requires_grad=True)
    merged = Assignment(torch.tensor([[0, 0, 1, 1]]), weight, 3, torch.tensor([[0, 2, -1]]))
    x = torch.tensor([[2.0, 4.0, 4.0, 8.0]])
    torch.testing.assert_close(merged.reduce(x), torch.tensor([[3.0, 7.0, 0.0]]))
    assert merged.reduce(x.bfloat16()).tolist() == [[3, 7, 0]]


def test_weightless_groups_are_zero_and_padding_may_weigh_anything() -> None:
    weight = torch.tensor([[0.0, 0.0, 2.0, torch.nan, -torch.inf]], requires_grad=True)
    merged = Assignment(torch.tensor([[0, 0, 1, -1, -1]]), weight, 2, torch.tensor([[0, 2]]))
    reduced = merged.reduce(torch.ones(1, 5))
    assert reduced.tolist() == [[0, 1]]
    reduced.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad[0, 2:].tolist() == [0, 0, 0]
