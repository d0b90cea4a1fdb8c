"""``check_wheel.py core|extras CHECKOUT``: is the installed package whole, and is it the installed one?"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import warnings
from importlib import metadata, resources
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says that numpy is missing
    import torch
with warnings.catch_warnings():
    warnings.simplefilter("error")
    import tokenops

level, checkout = sys.argv[1], Path(sys.argv[2])
installed = Path(tokenops.__file__).resolve()
assert installed.is_relative_to(checkout / ".venv-wheel"), installed
assert metadata.version("tokenops") == tokenops.__version__

if level == "core":
    for name in ("transformers", "timm", "numpy", "PIL", "pytest"):
        assert importlib.util.find_spec(name) is None, f"{name} is here: not a clean environment"
    for name in tokenops.__all__:
        try:
            getattr(tokenops, name)
        except tokenops.TokenOpsError as error:
            if "pip install" not in str(error):  # it may need an extra, and then says which
                raise
    selection = tokenops.Selection.from_mask(torch.tensor([[True, False, True]]))
    assert selection.reduce(torch.arange(3.0).view(1, 3, 1)).flatten().tolist() == [0.0, 2.0]
else:
    source = {p.relative_to(checkout) for p in (checkout / "tokenops").rglob("*") if p.is_file()}
    wanted = {p for p in source if "__pycache__" not in p.parts and p.suffix != ".pyc"}
    absent = [str(p) for p in wanted if not (installed.parents[1] / p).exists()]
    assert not absent, f"not in the wheel: {absent}"
    weights = resources.files("tokenops").joinpath("pocket", "weights")
    for file in weights.iterdir() if weights.is_dir() else ():
        print("package data:", file.name)
    for module in pkgutil.walk_packages(tokenops.__path__, "tokenops."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

print(f"tokenops {tokenops.__version__} from the wheel, {level}: fine")
