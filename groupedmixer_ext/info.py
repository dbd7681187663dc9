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
    return {
        "groupedmixer_ext": groupedmixer_ext.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **_build(),
        **_running(),
    }


def _build() -> dict[str, str]:
    if importlib.util.find_spec("groupedmixer_ext._build_info") is None:
        return {"built": "no"}
    from groupedmixer_ext import _build_info as build

    archs = f" for {' '.join(build.CUDA_ARCHS)}" if build.CUDA else ""
    return {
        "built with torch": f"{build.TORCH} (CUDA {build.TORCH_CUDA or 'none'})",
        "built with CUDA": f"{build.CUDA or 'none'}{archs} ({build.CUDA_REASON})",
        "built variants": " ".join(build.ISAS),
    }


def _running() -> dict[str, str]:
    try:
        import torch
    except ImportError:
        return {"torch": "not installed"}
    facts = {
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "CUDA devices": ", ".join(
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        )
        or "none",
    }
    try:
        from groupedmixer_ext import ops

        facts["variants available"] = " ".join(filter(ops.isa_available, ops.ISAS))
        facts["variant chosen"] = ops.active_isa()
    except (ImportError, RuntimeError) as error:
        facts["kernels"] = f"not usable: {error}"
    return facts


def main() -> None:
    facts = collect()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
