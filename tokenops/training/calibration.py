"""Importance-consistency calibration: low-rank scores learn to rank tokens as the frozen layer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.budget import Keep, check_keep, keep_count
from tokenops.errors import TokenOpsError, check_ints
from tokenops.integrations.families import Family, find_parts
from tokenops.routers import LowRankAttention, mass_curve
from tokenops.training.calibration_store import Fit, LayerReport, Store, fingerprint
from tokenops.training.layer_stream import Stream, advance, shown, streams, teacher

LOSSES = ("mse", "listwise")


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` did, layer by layer; :func:`~tokenops.routers.allocate` takes its ``mass``.

    >>> from tokenops.training.calibration_store import Fit
    >>> fit = Fit(mse=0.1, spearman=0.9, overlap=0.8)
    >>> report = LayerReport(0, fit, fit, 3, [0.75, 0.25])
    >>> Calibration((report,)).mass
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """

    layers: tuple[LayerReport, ...]

    @property
    def mass(self) -> Tensor:
        """Share of each layer's score mass in its visual tokens, best first.

        Shapes: -> (l n), layers and bins, float64.
        """
        return torch.tensor([report.mass for report in self.layers], dtype=torch.float64)

    def __str__(self) -> str:
        lines = ["layer  mse before > after   spearman        overlap         steps"]
        for r in self.layers:
            parts = [f"{getattr(r.before, n):6.3f} > {getattr(r.after, n):6.3f}" for n in vars(r.before)]
            lines.append(f"{r.layer:5d}  {'  '.join(parts)}  {r.steps:5d}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Plan:
    """The settings of a run; a resumed one must have the same."""

    samples: int
    epochs: int
    lr: float
    loss: str
    keep: Keep
    patience: int
    seed: int


def calibrate(
    model: nn.Module,
    factors: Mapping[str, LowRankAttention] | nn.ModuleDict,
    data: Iterable[Mapping[str, Any]],
    *,
    samples: int = 256,
    epochs: int = 10,
    lr: float = 3e-3,
    loss: str = "mse",
    keep: Keep = 1 / 9,
    patience: int = 3,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    family: Family | None = None,
) -> Calibration:
    r"""Fit low-rank factors to the frozen model's own attention scores, every layer by itself.

    .. math:: \min_{F_Q, F_K} \frac1N \sum_i (S_i - S^*_i)^2 \quad\text{or}\quad
        \min_{F_Q, F_K} \mathrm{KL}\Big(\frac{S^*}{\sum S^*} \Big\| \frac{S}{\sum S}\Big)

    S* are the scores of the layer's full attention: RoPE and all heads included, causal if the factors are.
    The model runs layer by layer over all samples, so that hidden states of one layer and one piece of one
    attention map are in memory at a time. A tenth of the items, at least one, is held out: after each epoch
    the factors that agree best on it are kept.

    Args:
        model: frozen; of a known family.
        factors: ``{layer: LowRankAttention}`` from :func:`~tokenops.integrations.low_rank_factors`; changed
            in place.
        data: processor outputs with images, one sample or a batch each, shuffled; at least two.
        samples: items taken from ``data``.
        epochs: passes over them at most.
        lr: of Adam, falling to 0 by half a cosine.
        loss: ``"mse"``, the paper's, or ``"listwise"``, the second one, which weighs ranks near the top.
        keep: budget at which the overlap is reported.
        patience: epochs without a better fit on the held-out items before a layer is done.
        seed: of the order of the items.
        folder: where finished layers are written; a second call with the same settings, factors, model and
            data continues from there.
        progress: show a progress bar.
        family: as in :func:`tokenops.attach`.

    Raises:
        TokenOpsError: bad settings, factors of other layers or widths or frozen, fewer than two items, an
            item without visual tokens, a folder of another run. Nothing is changed then.

    >>> from tokenops import pocket
    >>> from tokenops.integrations import low_rank_factors
    >>> from tokenops.pocket.calibration_data import calibration_data
    >>> model, processor = pocket.load()
    >>> factors = low_rank_factors(model, rank=4, layers=[0])
    >>> data = list(calibration_data(processor, 2, batch=1))
    >>> found = calibrate(model, factors, data, epochs=1, progress=False)
    >>> [report.layer for report in found.layers], found.mass.shape
    ([0], torch.Size([1, 256]))

    Reference: ALVTS (arXiv:2606.14277) §3.3. Deviations: Adam with early stopping, on the items that the
    reports then use (agreement after calibration is slightly flattered); the squared error is divided by the
    layer's mean squared score, which moves no minimum; for factors without causal mask S* is computed without
    it too, so it is not the attention that the layer runs. The listwise loss is ours.
    """
    if not isinstance(data, Iterable):
        raise TokenOpsError("calibrate", "data as an iterable of processor outputs", type(data).__name__)
    plan = _Plan(samples, epochs, lr, loss, check_keep(keep, who="calibrate"), patience, seed)
    parts = find_parts(model, family)
    scorers = _check(plan, factors, len(parts.layers), parts.language_model.config.hidden_size)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        held = list(islice(streams(model, data, family), samples))
        if len(held) < 2:
            raise TokenOpsError("calibrate", "at least two items", len(held))
        store = None if folder is None else Store(Path(folder), _settings(plan, scorers, held))
        reports = []
        for number in shown(range(max(scorers) + 1), "calibrating layers", progress):
            layer = parts.layers[number]
            if number in scorers:
                done = None if store is None else store.read(number, scorers[number])
                if done is None:
                    done = _fit_layer(number, layer, scorers[number], held, plan)
                    if store is not None:
                        store.write(done, scorers[number])
                reports.append(done)
            if number < max(scorers):
                for stream in held:
                    advance(layer, stream)
    finally:
        for module, mode in modes:
            module.training = mode
    return Calibration(tuple(reports))


def _fit_layer(
    number: int, layer: Any, scorer: LowRankAttention, held: list[Stream], plan: _Plan
) -> LayerReport:
    taught = [(*teacher(layer, stream, causal=scorer.causal), stream) for stream in held]
    cut = max(1, len(taught) // 10)
    check, train = taught[:cut], taught[cut:]
    scale = torch.stack([_mean_square(s, t.visual) for _, s, t in train]).mean().clamp(min=1e-30)
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    measure = _MEASURES[plan.loss]

    def loss_on(some: list[tuple[Tensor, Tensor, Stream]]) -> float:
        with torch.no_grad():
            return float(sum(measure(scorer, x, s, t, scale) for x, s, t in some)) / len(some)

    before, best = _fit(scorer, check, plan.keep, scale), loss_on(check)
    kept = {name: value.clone() for name, value in scorer.state_dict().items()}
    optimizer = torch.optim.Adam(scorer.parameters(), lr=plan.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs * len(train))
    steps = waited = 0
    try:
        for _ in range(plan.epochs):
            for i in torch.randperm(len(train), generator=generator).tolist():
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    measure(scorer, *train[i], scale).backward()
                optimizer.step()
                schedule.step()
                steps += 1
            now = loss_on(check)
            waited = 0 if now < best else waited + 1
            if now < best:
                best, kept = now, {name: value.clone() for name, value in scorer.state_dict().items()}
            if waited >= plan.patience:
                break
    finally:
        scorer.load_state_dict(kept)
    scorer.zero_grad(set_to_none=True)
    mass = torch.stack([mass_curve(s, t.visual) for _, s, t in taught]).mean(0)
    return LayerReport(number, before, _fit(scorer, check, plan.keep, scale), steps, tuple(mass.tolist()))


def _scores(scorer: LowRankAttention, x: Tensor, stream: Stream, *, log: bool = False) -> Tensor:
    rope = {"rope": stream.arguments["position_embeddings"]} if "rope" in scorer.needs() else {}
    return scorer.scores(x, visual=stream.visual, mask=stream.mask, log=log, **rope)


def _mean_square(scores: Tensor, visual: Tensor) -> Tensor:
    return scores[visual].double().square().mean()


def _mse(scorer: LowRankAttention, x: Tensor, wanted: Tensor, stream: Stream, scale: Tensor) -> Tensor:
    difference = (_scores(scorer, x, stream) - wanted)[stream.visual].double()
    return difference.square().mean() / scale


def _listwise(scorer: LowRankAttention, x: Tensor, wanted: Tensor, stream: Stream, scale: Tensor) -> Tensor:
    guess = _scores(scorer, x, stream, log=True).double().log_softmax(-1)
    share = wanted.double() / wanted.double().sum(-1, keepdim=True).clamp(min=1e-300)
    return -(share * guess.masked_fill(~stream.visual, 0.0)).sum(-1).mean()


_MEASURES: dict[str, Callable[..., Tensor]] = {"mse": _mse, "listwise": _listwise}


@torch.no_grad()
def _fit(
    scorer: LowRankAttention, some: list[tuple[Tensor, Tensor, Stream]], keep: Keep, scale: Tensor
) -> Fit:
    mse, spearman, overlap = [], [], []
    for x, wanted, stream in some:
        guess = _scores(scorer, x, stream)
        mse.append(float((guess - wanted)[stream.visual].double().square().mean() / scale))
        for row, real in enumerate(stream.visual):
            ours, theirs = guess[row, real], wanted[row, real]
            if len(ours) < 2:
                continue
            k = keep_count(keep, len(ours))
            both = set(ours.topk(k).indices.tolist()) & set(theirs.topk(k).indices.tolist())
            overlap.append(len(both) / k)
            ranks = torch.stack([v.argsort().argsort().double() for v in (ours, theirs)])
            spearman.append(float(torch.corrcoef(ranks)[0, 1]))
    mean = [sum(values) / max(1, len(values)) for values in (mse, spearman, overlap)]
    return Fit(*mean)


def _settings(plan: _Plan, scorers: Mapping[int, LowRankAttention], held: list[Stream]) -> dict[str, Any]:
    """What a run depends on: settings, factors as they begin, model and data by the first layer's input."""
    factors = [
        f"{n}: {scorer!r} {fingerprint(*scorer.state_dict().values())}" for n, scorer in scorers.items()
    ]
    seen = fingerprint(*(stream.hidden for stream in held), *(stream.visual for stream in held))
    return asdict(plan) | {"factors": factors, "model_and_data": seen}


def _check(plan: _Plan, factors: Any, depth: int, width: int) -> dict[int, LowRankAttention]:
    least = {"samples": 2, "epochs": 1, "patience": 1, "seed": 0}
    check_ints("calibrate", **{name: (getattr(plan, name), low) for name, low in least.items()})
    if isinstance(plan.lr, bool) or not isinstance(plan.lr, float | int) or not 0 < plan.lr < float("inf"):
        raise TokenOpsError("calibrate", "lr > 0", repr(plan.lr))
    if plan.loss not in LOSSES:
        raise TokenOpsError("calibrate", f"loss among {', '.join(LOSSES)}", repr(plan.loss))
    scorers: dict[int, LowRankAttention] = {}
    if not isinstance(factors, Mapping | nn.ModuleDict):
        raise TokenOpsError("calibrate", "factors as {layer: LowRankAttention}", type(factors).__name__)
    for name, scorer in factors.items():
        if not str(name).isdecimal() or int(name) >= depth or not isinstance(scorer, LowRankAttention):
            expected = f"{{layer: LowRankAttention}} of {depth} layers"
            raise TokenOpsError("calibrate", expected, f"{name!r}: {type(scorer).__name__}")
        scorers[int(name)] = scorer
    if not scorers or any(scorer.dim != width for scorer in scorers.values()):
        raise TokenOpsError("calibrate", f"factors of width {width}", [s.dim for s in scorers.values()])
    if len({id(scorer) for scorer in scorers.values()}) < len(factors):
        raise TokenOpsError("calibrate", "a module of its own for each layer, once", list(factors))
    if not all(p.requires_grad for scorer in scorers.values() for p in scorer.parameters()):
        raise TokenOpsError("calibrate", "factors that require gradients", "frozen ones")
    return scorers
