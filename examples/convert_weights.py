# SPDX-License-Identifier: MIT
"""Trained PyTorch weights of an entropy model, converted for the native engine.

Takes a checkpoint of `your_own_codec.py`, or any with a configuration and a GroupedMixerLatentCodec
called `latent_codec`, and writes a file from which `groupedmixer_ext.engine` codes without PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from compressai.models import CompressionModel
from safetensors import safe_open
from safetensors.numpy import save_file

from groupedmixer import Config, GroupedMixerLatentCodec
from groupedmixer.coding import SKIP_BELOW, TILE, engine_arguments
from groupedmixer_ext.engine import Engine, Settings, TableArrays

# Kept exactly: they decide about symbols and tables.
FLOAT32 = ("latent_codec.thresholds", "latent_codec.dead_zone", "latent_codec.z_medians")


class EntropyModel(CompressionModel):
    """What we need of a codec: its latent codec, under the name it has in the state dict."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.latent_codec = GroupedMixerLatentCodec(config)


def read_checkpoint(path: Path) -> GroupedMixerLatentCodec:
    """The latent codec of a checkpoint; whatever else the checkpoint holds is left alone."""
    checkpoint = torch.load(path, map_location="cpu")
    state = checkpoint["state_dict"]
    model = EntropyModel(Config.from_json(checkpoint["config"]))
    model.load_state_dict({k: v for k, v in state.items() if k.startswith("latent_codec.")})
    model.eval()
    model.latent_codec.update()
    return model.latent_codec


def convert(codec: GroupedMixerLatentCodec, path: Path) -> None:
    """Writes what the engine is made of: weights, integer tables, and the sizes as metadata."""
    arguments = engine_arguments(codec)  # the weights are rounded to float16 here
    weights = arguments.pop("weights")
    arrays = {k: v if k in FLOAT32 else v.astype(np.float16) for k, v in weights.items()}
    for name in ("y_tables", "z_tables"):
        for field, value in arguments.pop(name)._asdict().items():
            arrays[f"{name}.{field}"] = np.ascontiguousarray(value)
    save_file(arrays, path, metadata={"sizes": json.dumps(arguments)})


def load_engine(path: Path) -> Engine:
    """The engine of such a file. Needs NumPy, safetensors and groupedmixer_ext, not PyTorch."""
    with safe_open(path, framework="numpy") as file:
        sizes = json.loads(file.metadata()["sizes"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes["order"] = [tuple(group) for group in sizes["order"]]
    tables = {
        name: TableArrays(*(arrays.pop(f"{name}.{field}") for field in TableArrays._fields))
        for name in ("y_tables", "z_tables")
    }
    weights = {name: value.astype(np.float32) for name, value in arrays.items()}
    return Engine(weights, **sizes, **tables)


@torch.no_grad()
def main() -> None:
    """Converts, loads what was written, and compares it with PyTorch on a latent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of your_own_codec.py")
    parser.add_argument("output", type=Path, help="ends in .safetensors")
    arguments = parser.parse_args()

    codec = read_checkpoint(arguments.checkpoint)
    convert(codec, arguments.output)
    sizes = (arguments.checkpoint.stat().st_size, arguments.output.stat().st_size)
    print(f"checkpoint: {sizes[0]} bytes, converted: {sizes[1]} bytes")
    engine = load_engine(arguments.output)

    torch.manual_seed(0)
    y = 3 * torch.randn(1, codec.config.latent_channels, 16, 24)  # stands for what g_a makes
    quality = 4.0
    settings = Settings(round(256 * quality), SKIP_BELOW, TILE)
    (coded,), y_hat, _ = engine.encode(y.permute(0, 2, 3, 1).numpy(), [settings], threads=2)
    decoded, _ = engine.decode([coded.tiles], y.shape[2:], [settings], threads=1)
    print("decoded as encoded:", np.array_equal(decoded, y_hat))

    (from_pytorch,) = codec.coder().encode(y, [quality])
    streams = [[bytes(t.stream) for t in one.tiles] for one in (coded, from_pytorch)]
    print("the bytes of the PyTorch model:", streams[0] == streams[1])

    # The training form is another computation: equal up to rounding, and not meant to be more.
    unscaled = torch.from_numpy(y_hat * engine.inverse_gains(settings.quality)).permute(0, 3, 1, 2)
    difference = (codec(y, quality)["y_hat"] - unscaled).abs().mean()
    print(f"mean difference from the training form: {difference:.2g}")


if __name__ == "__main__":
    main()
