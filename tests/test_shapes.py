"""Shape annotations mean what they say when a test asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.shapes import Bool, Float, Int, check_shapes


def function(
    x: Float[Tensor, "b n d"], *, mask: Bool[Tensor, "b n"] | None = None, k: int | Int[Tensor, "b"] = 1
) -> Float[Tensor, "b n"]:
    return x.sum(-1)


def trailing(x: Float[Tensor, "b n ..."]) -> Int[Tensor, "b"]:
    return x.flatten(1).argmax(1)


X, MASK = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)


def test_right_shapes_pass() -> None:
    check_shapes(function, {"x": X, "mask": MASK, "k": torch.ones(2, dtype=torch.long)}, function(X))
    check_shapes(function, {"x": X, "mask": None, "k": 3}, function(X))
    check_shapes(function, {"x": X[:0]}, function(X[:0]))
    check_shapes(trailing, {"x": torch.zeros(2, 3)}, torch.zeros(2, dtype=torch.long))
    check_shapes(trailing, {"x": torch.zeros(2, 3, 4, 5)})


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"x": X[0]}, None),
        ({"x": X.long()}, None),
        ({"x": X, "mask": MASK[:, :2]}, None),
        ({"x": X, "mask": MASK.float()}, None),
        ({"x": X, "mask": MASK.long()}, None),
        ({"x": X, "k": torch.ones(3, dtype=torch.long)}, None),
        ({"x": X, "k": torch.ones(2)}, None),
        ({"x": X}, torch.zeros(3, 2)),
        ({"x": X}, torch.zeros(2, 3, dtype=torch.long)),
        ({"x": X}, X),
    ],
)
def test_wrong_shapes_are_named(arguments: dict[str, Any], result: Any) -> None:
    with pytest.raises(TokenOpsError, match="function"):
        check_shapes(function, arguments, result)


def leading(x: Float[Tensor, "... n 3"]) -> Float[Tensor, "... n"]:
    return x.sum(-1)


def test_axes_around_the_dots() -> None:
    check_shapes(leading, {"x": torch.zeros(5, 3)}, torch.zeros(5))
    check_shapes(leading, {"x": torch.zeros(2, 4, 5, 3)}, torch.zeros(2, 4, 5))
    for x, result in ((torch.zeros(3), None), (torch.zeros(5, 2), None), (torch.zeros(5, 3), torch.zeros(4))):
        with pytest.raises(TokenOpsError, match="leading"):
            check_shapes(leading, {"x": x}, result)
    with pytest.raises(TokenOpsError, match="trailing"):
        check_shapes(trailing, {"x": torch.zeros(2)})
