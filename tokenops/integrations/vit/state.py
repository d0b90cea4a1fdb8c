"""The pipeline at work inside one vision transformer: what its wrapped methods do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.probe import READS
from tokenops.integrations.vit.call import Call
from tokenops.integrations.vit.parts import readable_attention
from tokenops.integrations.wrap import LivesOnModel
from tokenops.pipeline import Pipeline
from tokenops.routers.route import Route
from tokenops.stages import Stage
from tokenops.tokenmap import Selection

_CALL = "_tokenops_call"


class _Calls:
    """The call that is running, the last one, and what a block's attention shows meanwhile."""

    def __init__(self) -> None:
        self.running: Call | None = None
        self.last: Call | None = None
        self.shown: dict[str, Tensor] | None = None


class _PerThread(_Calls, threading.local):
    """Of one thread."""


class VitState(LivesOnModel):
    """Lives on the model, so a deep copy has its own; threads that share the model do not see each other.

    Only what ``torch.compile`` made, which forgets what is written to a thread's own, shares one for all.
    ``readable`` are signals that the attention of a block can show the next one; ``signals`` those it shall.
    """

    forgets: ClassVar = {"local": _PerThread, "compiled": _Calls}

    def __init__(self, pipeline: Pipeline, depth: int, readable: set[str]) -> None:
        self.pipeline, self.depth = pipeline, depth
        stage, route = pipeline.stages.get("after_projector"), pipeline.stages.get("layers")
        self.stage = stage if isinstance(stage, Stage) else None
        self.route = route if isinstance(route, Route) else None
        self.signals = set() if self.route is None else readable & set(self.route.needs())
        self.local, self.compiled = _PerThread(), _Calls()

    @property
    def last(self) -> Call | None:
        """The last call, of this thread."""
        return self.compiled.last or self.local.last

    @property
    def running(self) -> Call | None:
        """The call that is running, in this thread."""
        return self.compiled.running or self.local.running

    # -- the model ----------------------------------------------------------------------------------------

    def features(self, model: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around ``forward_features``: patches that left for good are not among the features."""
        return self._run(model, original, arguments, lambda call, out: call.leave(out))

    def intermediates(self, model: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around ``forward_intermediates``: intermediates keep all patches, the final features do not."""

        def leave(call: Call, out: Any) -> Any:
            if isinstance(out, dict) and "image_features" in out:
                return out | {"image_features": call.leave(out["image_features"])}
            return (call.leave(out[0]), out[1]) if isinstance(out, tuple) else out

        return self._run(model, original, arguments, leave)

    def _run(
        self,
        model: Any,
        original: Callable[..., Any],
        arguments: dict[str, Any],
        leave: Callable[[Call, Any], Any],
    ) -> Any:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise TokenOpsError("attach", "torch.export or torch.compile", "torch.jit.trace")
        if self.pipeline.training != model.training:
            self.pipeline.train(model.training)
        height, width = arguments["x"].shape[-2:]
        rows, columns = model.patch_embed.dynamic_feat_size((height, width))
        call = Call(self.stage, self.route, model.num_prefix_tokens, (int(rows), int(columns)))
        compiling = torch.compiler.is_compiling()
        calls = self.compiled if compiling else self.local
        before, calls.running = calls.running, call
        try:
            out = leave(call, original(**arguments))
        finally:
            calls.running = before
        self.compiled.last = None
        calls.last = call
        return out

    def enter(self, norm: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around ``norm_pre``, the last thing before the blocks."""
        x, call = original(**arguments), self.running
        return x if call is None else call.enter(x)

    # -- a block ------------------------------------------------------------------------------------------

    def block(self, layer: int, block: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around a block: the chosen tokens run, the others pass it by."""
        x = arguments.pop("x")
        call = self._call_of(x)
        chosen = call.choose(layer, block, x)
        if chosen is None:
            return self._watch(call, layer, block, chosen, lambda: original(x, **arguments))
        if arguments.get("attn_mask") is not None:
            raise TokenOpsError("attach", "no attn_mask where tokens are left out", "attn_mask")
        if arguments.get("rope") is not None:
            arguments["rope"] = take_rope(arguments["rope"], chosen, call.prefix)
        y = self._watch(call, layer, block, chosen, lambda: original(chosen.reduce(x), **arguments))
        return chosen.lift(y, into=x.to(y.dtype))

    def _call_of(self, x: Tensor) -> Call:
        """The call that x belongs to; checkpointing brings the very tensor back in the backward pass."""
        call = self.running
        if torch.compiler.is_compiling():
            assert call is not None
            return call
        if call is not None:
            setattr(x, _CALL, call)
        call = getattr(x, _CALL, None)
        if call is None:
            expected = "blocks run by forward_features or forward_intermediates (checkpoints not reentrant)"
            raise TokenOpsError("attach", expected, "a block called by itself")
        return call

    def _watch(
        self, call: Call, layer: int, block: Any, chosen: Selection | None, run: Callable[[], Tensor]
    ) -> Tensor:
        """Run a block; what its attention shows the next one is kept."""
        watched = self.signals and layer + 1 < self.depth and layer + 1 not in call.rows
        if not watched or not call.drops(layer + 1):
            return run()
        self.local.shown = shown = {}
        try:
            y = run()
        finally:
            self.local.shown = None
        attention: Any = readable_attention(block)
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            rows = {
                name: READS[name](shown["q_norm"], shown["k_norm"], attention.scale) for name in self.signals
            }
        if chosen is not None:
            rows = {name: chosen.lift(r, into=r.new_zeros(len(r), chosen.n)) for name, r in rows.items()}
        call.rows[layer + 1] = rows
        return y

    def show(self, name: str, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around ``q_norm`` and ``k_norm`` of a block's attention: what it multiplies, (b h n e)."""
        out = original(**arguments)
        if self.local.shown is not None:
            self.local.shown[name] = out.detach()
        return out


def take_rope(rope: Tensor, chosen: Selection, prefix: int) -> Tensor:
    """Rotary tables of the chosen patches: (n e), (h n e) or (b h n e) -> (b h k e), h 1 where shared."""
    b, patches = chosen.index.shape[0], chosen.index[:, prefix:] - prefix
    rope = rope[(None,) * (4 - rope.ndim)]
    rope = rope.expand(b, *rope.shape[1:])
    return rope.take_along_dim(patches[:, None, :, None], dim=2)
