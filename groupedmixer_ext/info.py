# SPDX-License-Identifier: MIT
"""What was built and what runs: ``python -m groupedmixer_ext.info``.

The output belongs into every bug report.
"""

from __future__ import annotations

import importlib.util
import platform

import groupedmixer_ext


def collect() -> dict[str, str]:
    """The facts, in the order in which they are printed. Never raises on a broken installation."""
    facts = {
        "groupedmixer_ext": groupedmixer_ext.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for part, ask in [
        ("built", _build),
        ("coder", _coder),
        ("engine for GPUs", _device_engine),
        ("torch", _torch),
        ("CUDA devices", _devices),
        ("kernels", _kernels),
    ]:
        try:
            facts.update(ask())
        except Exception as error:  # whatever is broken: the report has to say what
            facts[part] = f"not usable: {type(error).__name__}: {error}"
    return facts


def _build() -> dict[str, str]:
    from groupedmixer_ext import _build_info as build

    archs = f" for {' '.join(build.CUDA_ARCHS)}" if build.CUDA else ""
    return {
        "built with torch": f"{build.TORCH} (CUDA {build.TORCH_CUDA or 'none'})",
        "built with CUDA": f"{build.CUDA or 'none'}{archs} ({build.CUDA_REASON})",
        "built variants": " ".join(build.ISAS),
    }


def _coder() -> dict[str, str]:
    from groupedmixer_ext import _rans

    return {"coder": str(_rans.__file__)}


def _device_engine() -> dict[str, str]:
    found = importlib.util.find_spec("groupedmixer_ext._engine_cuda")
    return {"engine for GPUs": "not built" if found is None else str(found.origin)}


def _torch() -> dict[str, str]:
    import torch

    return {"torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"}


def _devices() -> dict[str, str]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"CUDA devices": ", ".join(names) or "none"}


def _kernels() -> dict[str, str]:
    from groupedmixer_ext import ops

    return {
        "variants available": " ".join(filter(ops.isa_available, ops.ISAS)),
        "variant chosen": ops.active_isa(),
    }


def main() -> None:
    facts = collect()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
