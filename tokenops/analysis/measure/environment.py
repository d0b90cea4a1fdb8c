"""What numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Names and versions of the hardware and of the software that count.

    >>> found = environment(torch.device("cpu"))
    >>> found["torch"] == torch.__version__, found["gpu"]
    (True, None)
    """
    from tokenops import __version__

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "machine": gpu or f"{os.cpu_count()}-core {platform.machine()} CPU",
        "processor": _processor(),
        "gpu": gpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "tokenops": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "transformers": _version("transformers"),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
