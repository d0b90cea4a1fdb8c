"""A model that is used for a while and afterwards is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(*roots: nn.Module) -> Iterator[None]:
    """Inside: evaluation mode, no gradients. Afterwards, also after an exception or Ctrl-C, all is restored.

    What is restored: every attribute, buffer and hook of every module (training modes, what an attached
    pipeline put there, what a forward left), torch's random state. Tensors that were changed in place are
    not; a forward in evaluation mode changes none.

    >>> model = nn.Dropout()
    >>> with untouched(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modules = {id(m): m for root in roots for m in root.modules()}.values()
    # buffers and hooks are dicts: the first forward of transformers adds hooks and an attribute that says so
    tables = [table for m in modules for table in (vars(m), *vars(m).values()) if isinstance(table, dict)]
    saved = [(table, table.copy()) for table in tables]
    devices = {p.device for root in roots for p in root.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)), torch.no_grad():
            for root in roots:
                root.eval()
            yield
    finally:
        for table, before in saved:
            _restore(table, before)


def _restore(current: dict, before: dict) -> None:
    """Only where something differs, so that nothing is missing for a moment that another thread needs."""
    for name in current.keys() - before.keys():
        del current[name]
    for name, value in before.items():
        if name not in current or current[name] is not value:
            current[name] = value
