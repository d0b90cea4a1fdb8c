"""Low-rank factors of query and key weights by truncated SVD, singular values split evenly."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.shapes import Float
from tokenops.tokenmap.checks import check_field


def split(weight: Float[Tensor, "e d"], rank: int) -> tuple[Float[Tensor, "e r"], Float[Tensor, "r d"]]:
    r"""Two factors whose product is the nearest matrix of rank r, both with the same Gram matrix.

    .. math:: W \approx (U_R \Sigma_R^{1/2}) (\Sigma_R^{1/2} V_R^\top), \qquad
        \lVert W - \tilde W \rVert_2 = \sigma_{R+1}

    Shapes: (e d) -> (e r), (r d). Columns and rows beyond min(e, d) are zero.

    >>> up, down = split(torch.diag(torch.tensor([4.0, 9.0])), 1)
    >>> up @ down
    tensor([[0., 0.],
            [0., 9.]])

    Reference: Eckart and Young 1936; ALVTS (arXiv:2606.14277) §3.
    """
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return _pad(u, s, vh, rank)


def split_product(
    left: Float[Tensor, "s a"], right: Float[Tensor, "s d"], rank: int
) -> tuple[Float[Tensor, "a r"], Float[Tensor, "r d"]]:
    r"""The same two factors of ``leftᵀ right`` (a d), without that product: O((a + d) s² + s³).

    >>> up, down = split_product(torch.tensor([[2.0, 4.0]]), torch.tensor([[8.0]]), 1)
    >>> up @ down
    tensor([[16.],
            [32.]])
    """
    (q1, r1), (q2, r2) = torch.linalg.qr(left.T), torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T, full_matrices=False)
    return _pad(q1 @ u, s, vh @ q2.T, rank)


def fold(
    w_q: Tensor, bias_q: Tensor | None, w_k: Tensor, *, rank: int, heads: int, kv_heads: int, svd: str
) -> tuple[Tensor, Tensor | None, Tensor]:
    r"""Query factor (r d), its bias (r) or None, and key factor (r d) of the logits summed over heads.

    .. math:: \sum_h (W_{Q,h} x + b_h)^\top W_{K,h} y = [x, 1]^\top [W_Q, b_Q]^\top (P W_K)\, y
        \approx (F_Q x + f)^\top F_K y

    P repeats key heads to query heads, so Pᵀ sums the query heads of each group. The bias is a column of the
    matrix that is factorised. ``svd="factors"`` truncates W_Q and W_K before (the bias stays exact),
    ``"logits"`` truncates the product, bias column included.
    """
    k_up = None
    if svd == "factors":
        (q_up, q_down), (k_up, w_k) = split(w_q, rank), split(w_k, rank)
        w_q = q_up @ q_down
    augmented = w_q if bias_q is None else torch.cat([w_q, bias_q[:, None]], 1)
    left = reduce(augmented, "(g r e) d -> (g e) d", "sum", g=kv_heads, r=heads // kv_heads)
    left = left if k_up is None else k_up.T @ left
    up, k = split_product(left, w_k, rank)
    d = w_q.shape[1]
    return up[:d].T, None if bias_q is None else up[d], k


def _pad(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    root = torch.cat([s[:rank].sqrt(), s.new_zeros(max(0, rank - len(s)))])
    u = torch.cat([u[:, :rank], u.new_zeros(u.shape[0], max(0, rank - u.shape[1]))], 1)
    vh = torch.cat([vh[:rank], vh.new_zeros(max(0, rank - vh.shape[0]), vh.shape[1])])
    return u * root, root[:, None] * vh


def check_weights(
    who: str,
    w_q: Tensor,
    w_k: Tensor,
    bias_q: Tensor | None,
    bias_k: Tensor | None,
    heads: int,
    kv_heads: int,
) -> None:
    """Finite weights and biases of heads of one width; key heads divide query heads.

    Raises:
        TokenOpsError: they are not.
    """
    check_field(who, "w_q", w_q, None, (None, None))
    for name, count, total in (("heads", heads, w_q.shape[0]), ("kv_heads", kv_heads, heads)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1 or total % count:
            raise TokenOpsError(who, f"{name} as an int that divides {total}", repr(count))
    check_field(who, "w_k", w_k, w_q.dtype, (w_q.shape[0] // heads * kv_heads, w_q.shape[1]), w_q.device)
    for name, bias, weight in (("bias_q", bias_q, w_q), ("bias_k", bias_k, w_k)):
        if bias is not None:
            check_field(who, name, bias, None, (weight.shape[0],), w_q.device)
    for name, tensor in (("w_q", w_q), ("w_k", w_k), ("bias_q", bias_q), ("bias_k", bias_k)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise TokenOpsError(who, f"{name} finite", "NaN or infinity")
