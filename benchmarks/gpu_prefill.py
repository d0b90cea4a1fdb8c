"""Prefill of full-size models on a GPU: unattached, pruned and routed; eager, compiled and with CUDA graphs.

    python benchmarks/gpu_prefill.py --out benchmarks/results/gpu_prefill.json
    python benchmarks/gpu_prefill.py --device cpu --small --modes eager

Architectures of LLaVA-1.5-7B, LLaVA-NeXT-7B and Qwen2.5-VL-7B with random weights in bfloat16, one image
and 64 words, vision tower included, a cache that is filled, logits of the last token. Pruning is
VisionSelector at 10, 20 and 30 %; routing is ALVTS at 1/9 with rank 256, its factors random: time does not
depend on their values. All contenders share the weights and run in turn within a mode; times are from
inputs on the device to the logits, seconds on the wall after synchronising, medians over the rounds.
*Limit* is the speed-up of a roofline on the device (``tokenops.analysis.cost``, causal pairs, as kernels
compute them; with all pairs beside it), *share* what was reached of it, against the unattached model of the
same mode. Compilation and graphs are warmed up before, and what they took is told. A cell that fails says
how. The result is saved as it grows; models that ``--out`` has already, from the same device and
versions, stay.

Then attention on packed ragged batches of 1, 4 and 16 with lengths of 200 to 1,500 tokens: every backend
that serves, beside SDPA on a padded batch with a mask.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_attention import attention_rows
from gpu_contenders import COMPILED, MODES, pipelines, running
from gpu_shapes import SHAPES, TEXT, Shape
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table

from tokenops.analysis.cost import DEVICES, cost
from tokenops.analysis.measure.memory import peak_bytes, stored_bytes

# what pruning at 20 % and routing at 1/9 should reach of their limits, and at least in all
SHARES = {"prune 20 %": 0.9, "route 11 %": 0.8}
LEAST = {
    ("LLaVA-1.5-7B", "route 11 %"): 2.3,
    ("LLaVA-NeXT-7B", "prune 20 %"): 3.7,
    ("Qwen2.5-VL-7B, 1,296", "prune 20 %"): 2.0,
    ("Qwen2.5-VL-7B, 6,806", "prune 20 %"): 2.0,
}


class Setting:
    """Where and how small: what every part of the benchmark needs to know."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.small, self.rounds = torch.device(options.device), options.small, options.rounds
        self.dtype = torch.bfloat16
        self.modes: list[str] = options.modes
        self.roofline = options.roofline
        self.until = time.monotonic() + 60 * options.minutes

    def seconds(self, call: Callable[[], Any]) -> float:
        """On the wall, with nothing left to do on the device before and after."""
        self.synchronize()
        start = time.perf_counter()
        out = call()
        self.synchronize()
        took = time.perf_counter() - start
        del out
        return took

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def out_of_time(self) -> bool:
        """Whether nothing new may start."""
        return time.monotonic() > self.until


def warm(calls: dict[str, Any], at: Setting, truth: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each call three times: what the first took, what it holds, how far its logits are from eager ones."""
    for name in list(calls):
        row: dict[str, Any] = {"name": name}
        try:
            row["first_s"] = round(at.seconds(calls[name]), 2)
            at.seconds(calls[name])
            peak, out = peak_bytes(calls[name], at.device)
            row |= {
                "peak_MB": peak and round(peak / 1e6, 3),
                "kv_MB": stored_bytes(out.past_key_values) / 1e6,
            }
            logits = out.logits.float().clone()
            first = truth.setdefault(name, logits)
            row["logits_apart"] = float((logits - first).abs().max() / first.abs().max())
        except Exception as error:  # one backend's failure must not cost the measurements of the others
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            del calls[name]
        yield row


def measure_mode(
    mode: str, model: Any, shape: Shape, at: Setting, truth: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row per contender."""
    config, inputs = shape.config(at.small), shape.inputs(at.small, at.device, at.dtype)
    wanted = pipelines(config, at.device)
    if MODES[mode] is not None:
        wanted = {name: wanted[name] for name in COMPILED}
    with running(model, mode, wanted, inputs) as calls, torch.no_grad():
        rows = list(warm(calls, at, truth))
        if MODES[mode] is not None:
            rows[0]["graph_breaks_of_the_mode"] = sum(torch._dynamo.utils.counters["graph_break"].values())
        timed = {name: lambda call=call: at.seconds(call) for name, call in calls.items()}
        took = in_turn(timed, at.rounds) if timed else {}
    size = shape.sizes(at.small)
    for row in rows:
        name = row["name"]
        row |= {"model": shape.name, "visual": shape.visual(at.small), "mode": mode}
        if name in took:
            row["ms"] = spread(1e3 * took[name])
        if name in took and "unattached" in took and wanted[name] is not None:
            row |= reached(spread(took["unattached"] / took[name]), config, size, wanted[name], at)
    return [relative(row, rows) | bars(row) for row in rows]


def reached(ratio: list[float], config: Any, size: Any, pipeline: Any, at: Setting) -> dict[str, Any]:
    """A speed-up, its limits, and its share of the stricter one, in which attention is causal."""
    known = {"text": TEXT, "dtype": at.dtype, "device": at.roofline}
    causal, full = (
        cost(config, size, pipeline, **known, pairs=pairs).speedup_limit.time for pairs in ("causal", "full")
    )
    return {"speedup": ratio, "limit": causal, "limit_all_pairs": full, "share": ratio[1] / causal}


def relative(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row, with memory over that of the unattached model."""
    full = next((r for r in rows if r["name"] == "unattached" and "kv_MB" in r), None)
    if full is None or "kv_MB" not in row:
        return row
    peak = row["peak_MB"] / full["peak_MB"] if row["peak_MB"] and full["peak_MB"] else None
    return row | {"peak_ratio": peak, "kv_ratio": row["kv_MB"] / full["kv_MB"]}


def bars(row: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, and whether it was met."""
    share = SHARES.get(row["name"])
    if share is None or "share" not in row:
        return {}
    least = LEAST.get((row["model"], row["name"]), 0.0)
    met = row["share"] >= share and row["speedup"][1] >= least
    return {"bar_share": share, "bar_speedup": least or None, "met": bool(met)}


def measure_model(shape: Shape, at: Setting) -> Iterator[dict[str, Any]]:
    """All modes of one model; those there was no time for say so."""
    model, truth = None, {}
    for mode in at.modes:
        if at.out_of_time:
            yield {"model": shape.name, "mode": mode, "failed": "no time left"}
            continue
        if model is None:
            model = shape.build(at.small, at.device, at.dtype)
        yield from measure_mode(mode, model, shape, at, truth)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def known_device(device: torch.device) -> str | None:
    """The device's name in ``tokenops.analysis.cost``; on a CPU, which only tries the path, that of a GPU."""
    name = device_name(device).lower().replace(" ", "")
    return "h200" if device.type == "cpu" else next((known for known in DEVICES if known in name), None)


def settings(at: Setting) -> dict[str, Any]:
    """What the numbers were measured on."""
    cuda = at.device.type == "cuda"
    return {
        "device": device_name(at.device),
        "cuda": torch.version.cuda if cuda else None,
        "roofline": at.roofline,
        "dtype": str(at.dtype).removeprefix("torch."),
        "small": at.small,
        "rounds": at.rounds,
        **machine(),
        "transformers": transformers.__version__,
    }


def earlier(path: Path | None, now: dict[str, Any]) -> dict[str, Any]:
    """What a file holds already, where it was measured as this is."""
    if path is None or not path.is_file():
        return {"prefill": [], "attention": []}
    before = json.loads(path.read_text())
    return before if before["settings"] == now else {"prefill": [], "attention": []}


def show(result: dict[str, Any]) -> None:
    """Tables on the terminal."""
    table = Table("model", "mode", "", "ms", "speed-up", "limit", "share", "peak", "KV", "first s")
    for r in result["prefill"]:
        if "ms" not in r:
            table.add_row(r["model"], r["mode"], r.get("name", ""), r.get("failed", "not run"))
            continue
        gains = ("",) * 3
        if "limit" in r:
            gains = f"{r['speedup'][1]:.2f}×", f"{r['limit']:.2f}×", f"{r['share']:.2f}"
        ratios = (f"{r[k]:.2f}" if r.get(k) else "" for k in ("peak_ratio", "kv_ratio"))
        table.add_row(
            r["model"], r["mode"], r["name"], f"{r['ms'][1]:.2f}", *gains, *ratios, f"{r['first_s']:.1f}"
        )
    ragged = Table("batch", "tokens", "backend", "ms", "over padded SDPA")
    for r in result["attention"]:
        time_ = f"{r['ms'][1]:.3f}" if "ms" in r else r["failed"]
        ratio = f"{r['speedup'][1]:.2f}×" if "speedup" in r else ""
        ragged.add_row(str(r["batch"]), str(r["tokens"]), r["backend"], time_, ratio)
    Console().print(table, ragged)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--roofline", choices=DEVICES, help="by default the one of the device's name")
    parser.add_argument("--small", "--smoke", action="store_true", help="the same path at tiny sizes")
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60, help="start nothing new after that")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    given.roofline = given.roofline or known_device(torch.device(given.device))
    if given.roofline is None:
        parser.error(f"--roofline for {device_name(torch.device(given.device))}: one of {', '.join(DEVICES)}")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    started = time.monotonic()
    given = options(arguments)
    at = Setting(given)
    now = settings(at)
    result = earlier(given.out, now) | {"settings": now}
    for name in given.models:
        result["prefill"] = [row for row in result["prefill"] if row["model"] != name]
        for row in measure_model(SHAPES[name], at):
            result["prefill"].append(row)
            if given.out:
                save(result, given.out)
        gc.collect()
    result["attention"] = attention_rows(at.device, at.dtype, at.small, at.rounds, at.seconds)
    show(result)
    Console().print(f"took {time.monotonic() - started:.0f} s")
    if given.out:
        save(result, given.out)


if __name__ == "__main__":
    main()
