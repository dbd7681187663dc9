# SPDX-License-Identifier: MIT
"""compressai models with their own entropy coding and with `groupedmixer.accelerate`'s.

    python benchmarks/bench_accelerate.py
    python benchmarks/bench_accelerate.py --models elic --rounds 20 --total-rounds 3 --json out.json

The entropy part of a direction is what its calls of the entropy models' build_indexes, compress
and decompress take, with the arguments that they have when the bundled photo is coded: recorded
once, then repeated without the networks between them. (ELIC's encoder decodes what it has coded, so
both kinds of calls are in it.) --total-rounds adds whole calls of model.compress and
model.decompress. Weights are random and calibrated so that symbols are realistic
(`_compressai_peers.py`); quality means nothing.

Before anything is timed, strings of the format compressai must equal compressai's, and all
pictures must be decoded alike. Calls are taken in turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _compressai_peers import Kind, calibrated
from _pictures import photo
from _timing import environment, interleaved, iqr
from compressai.entropy_models import EntropyModel
from compressai.models import MeanScaleHyperprior
from compressai.models.sensetime import Elic2022Official
from torch import Tensor

import groupedmixer

FORMATS = (None, "compressai", "groupedmixer")  # None: compressai itself
METHODS = ("build_indexes", "compress", "decompress")

Call = Callable[[], object]


def main() -> int:
    args = _arguments()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    facts = environment("cpu")
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    print(
        f"{'model':>14} {'format':>12} {'direction':>9} {'part':>8} {'median ms':>10} {'iqr':>7} "
        f"{'x faster':>8} {'Msymbols/s':>10} {'bytes':>8}"
    )
    runs = []
    for name in args.models:
        runs += _measure(name, args)
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": facts, "runs": runs}, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one per core")
    parser.add_argument("--rounds", type=int, default=10, help="turns of the entropy parts")
    parser.add_argument("--total-rounds", type=int, default=0, help="turns of whole calls")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    for name, least in (("height", 64), ("width", 64), ("threads", 1), ("rounds", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    return args


def mean_scale_model(x: Tensor) -> Any:
    """mbt2018-mean (arXiv 1809.02736), N = 128, M = 192."""
    model = MeanScaleHyperprior(128, 192)
    return calibrated(Kind(model, [model.h_s[-1]], True, model.g_a[-1]), x)


def elic_model(x: Tensor) -> Any:
    """ELIC (arXiv 2203.10886), N = 192, M = 320: ten strings of y."""
    model = Elic2022Official()
    codecs = model.latent_codec["y"].latent_codec.values()
    codings = [codec.entropy_parameters[-1] for codec in codecs]
    return calibrated(Kind(model, codings, True, model.g_a[-2]), x)


MODELS = {"mbt2018-mean": mean_scale_model, "elic": elic_model}


class Subject:
    """A model in one format, with the calls that code a picture and those of its entropy models."""

    def __init__(self, model: Any, format: str | None, x: Tensor) -> None:
        with torch.inference_mode(False):  # a model as it is loaded
            self.model = groupedmixer.accelerate(copy.deepcopy(model), format)
        self.x = x
        self.encode_calls, self.coded = self._recorded(self.encode)
        self.decode_calls, decoded = self._recorded(self.decode)
        self.x_hat = decoded["x_hat"]

    def encode(self) -> Any:
        return self.model.compress(self.x)

    def decode(self) -> Any:
        return self.model.decompress(self.coded["strings"], self.coded["shape"])

    @property
    def strings(self) -> list[bytes]:
        return [string for strings in self.coded["strings"] for string in strings]

    def _recorded(self, call: Callable[[], Any]) -> tuple[list[Call], Any]:
        """What a call gives, and its calls of entropy models, to be made again."""
        calls: list[Call] = []
        modules = [m for m in self.model.modules() if isinstance(m, EntropyModel)]
        for module in modules:
            for method in METHODS:
                if hasattr(module, method):
                    setattr(module, method, _recording(getattr(module, method), calls))
        try:
            result = call()
        finally:
            for module in modules:
                for method in METHODS:
                    vars(module).pop(method, None)
        return calls, result


def _recording(method: Any, calls: list[Call]) -> Any:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        # cloned: models write into some of these later
        kept = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        kept_too = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        calls.append(lambda: method(*kept, **kept_too))
        return method(*args, **kwargs)

    return recorded


def check(subjects: dict[str, Subject]) -> None:
    """ValueError if strings or pictures are not what they must be."""
    peer = subjects["None"]
    if subjects["compressai"].strings != peer.strings:
        raise ValueError("format compressai is wrong: its strings are not compressai's")
    for name, subject in subjects.items():
        if not torch.equal(subject.x_hat, peer.x_hat):
            raise ValueError(f"format {name} is wrong: it decodes another picture")


@torch.inference_mode()
def _measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    pixels = torch.from_numpy(photo(args.height, args.width).rgb.copy())
    x = pixels.permute(2, 0, 1)[None] / 255
    x = F.pad(x, (0, -args.width % 64, 0, -args.height % 64))
    with torch.inference_mode(False):
        model = MODELS[name](x.clone())
    subjects = {str(format): Subject(model, format, x) for format in FORMATS}
    check(subjects)
    num_symbols = _num_symbols(subjects["None"])
    runs = []
    for direction in ("encode", "decode"):
        entropy = {
            format: _all_of(getattr(subject, f"{direction}_calls"))
            for format, subject in subjects.items()
        }
        total = {format: getattr(subject, direction) for format, subject in subjects.items()}
        parts = [("entropy", interleaved(entropy, args.rounds))]
        if args.total_rounds:
            parts.append(("total", interleaved(total, args.total_rounds, burst=1)))
        for part, samples in parts:
            for format, values in samples.items():
                median = statistics.median(values)
                run = {
                    "model": name,
                    "format": format,
                    "height": args.height,
                    "width": args.width,
                    "threads": torch.get_num_threads(),
                    "direction": direction,
                    "part": part,
                    "median_ms": median,
                    "iqr_ms": iqr(values),
                    "repeats": len(values),
                    "times_faster": statistics.median(samples["None"]) / median,
                    "symbols": num_symbols,
                    "bytes": sum(map(len, subjects[format].strings)),
                }
                runs.append(run)
                print(
                    f"{name:>14} {'-' if format == 'None' else format:>12} {direction:>9} "
                    f"{part:>8} {median:>10.2f} {run['iqr_ms']:>7.2f} {run['times_faster']:>8.2f} "
                    f"{1e-3 * num_symbols / median:>10.1f} {run['bytes']:>8}"
                )
    return runs


def _all_of(calls: list[Call]) -> Call:
    def call() -> None:
        for one in calls:
            one()

    return call


def _num_symbols(subject: Subject) -> int:
    """Of all latents, counted where a decoder gets them."""
    decoded = [call() for call in subject.decode_calls]
    return sum(values.numel() for values in decoded if values.is_floating_point())


if __name__ == "__main__":
    sys.exit(main())
