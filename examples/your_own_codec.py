# SPDX-License-Identifier: MIT
"""A codec of compressai parts around GroupedMixer's entropy model: trained, saved, coding.

The transforms are those of "Joint Autoregressive and Hierarchical Priors" (Minnen et al., 2018),
small; the entropy model is `GroupedMixerLatentCodec`. One model serves all qualities.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from compressai.layers import GDN
from compressai.models import SimpleVAECompressionModel
from compressai.models.utils import conv, deconv
from compressai.optimizers import net_aux_optimizer
from example_pictures import Pictures
from torch import Tensor, nn

from groupedmixer import Config, GroupedMixerLatentCodec
from groupedmixer.config import LAMBDAS

# Small, so that minutes suffice. 4 slices of channels in 2x2 phases: 16 groups, coded in turn.
CONFIG = Config(
    name="my-codec",
    transform="patch",  # this, transform_width and transform_depth: not used by the entropy model
    transform_width=(1, 1),
    transform_depth=(0, 0),
    latent_channels=48,
    hyper_width=32,
    hyper_channels=16,
    slices=4,
    patch=(2, 2),
    width=64,
    layers=2,
)


class MyCodec(SimpleVAECompressionModel):
    """Four strided convolutions, GDN between them, and back; `GroupedMixerLatentCodec` inside."""

    def __init__(self, config: Config, width: int = 32) -> None:
        super().__init__()
        n, m = width, config.latent_channels
        self.g_a = nn.Sequential(
            conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m)
        )
        self.g_s = nn.Sequential(
            deconv(m, n),
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, 3),
        )
        self.latent_codec = GroupedMixerLatentCodec(config)

    def forward(self, x: Tensor, quality: Tensor | None = None) -> dict[str, object]:
        """As compressai's, but with the quality of each picture: [B], 0..7."""
        out = self.latent_codec(self.g_a(x), quality)
        return {**out, "x_hat": self.g_s(out["y_hat"])}


def train(model: MyCodec, pictures: Pictures, seconds: float, steps: int | None) -> int:
    """Steps until the time is over, or as many as given. Returns their number."""
    model.train()
    optimizers = net_aux_optimizer(
        model, {"net": {"type": "Adam", "lr": 1e-3}, "aux": {"type": "Adam", "lr": 1e-2}}
    )
    end, step = time.monotonic() + seconds, 0
    while step < steps if steps is not None else time.monotonic() < end:
        x = pictures.batch(8)
        level = torch.randint(len(LAMBDAS), (len(x),))  # each picture at a quality of its own
        out = model(x, level)
        rate = sum(-p.log2().sum() for p in out["likelihoods"].values()) / x[:, 0].numel()
        error = (out["x_hat"] - x).square().mean(dim=(1, 2, 3)) * 255**2
        loss = rate + (torch.tensor(LAMBDAS)[level] * error).mean()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers["net"].step()
        model.aux_loss().backward()  # compressai's: where the tables of z begin and end
        optimizers["aux"].step()
        if step % 50 == 0:
            psnr = -10 * (error.mean() / 255**2).log10()
            print(f"step {step:5}  loss {loss:7.3f}  {rate:6.3f} bpp  {psnr:5.2f} dB", flush=True)
        step += 1
    return step


def save(model: MyCodec, path: Path) -> None:
    """A checkpoint: configuration and weights, with the integer tables that streams depend on."""
    model.eval()
    model.latent_codec.update()  # builds the tables; without it they would not be in the file
    torch.save({"config": CONFIG.to_json(), "state_dict": model.state_dict()}, path)


def load(path: Path) -> MyCodec:
    """The codec of a checkpoint."""
    checkpoint = torch.load(path, map_location="cpu")
    model = MyCodec(Config.from_json(checkpoint["config"]))
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


@torch.no_grad()
def main() -> None:
    """Trains, saves, loads, and codes a picture with the loaded codec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures (default: made up ones)")
    parser.add_argument("--minutes", type=float, default=3, help="to train (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="to train, instead of minutes")
    parser.add_argument("--output", type=Path, default=Path("my-codec.pth.tar"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = MyCodec(CONFIG)
    with torch.enable_grad():
        steps = train(model, Pictures(arguments.data, 64), 60 * arguments.minutes, arguments.steps)
    save(model, arguments.output)
    print(f"trained for {steps} steps, written to {arguments.output}")

    # The sender has the trained model, the receiver what was saved.
    receiver = load(arguments.output)
    x = Pictures(arguments.data, 128, seed=1).batch(1)
    for quality in (0.0, 3.5, 7.0):
        model.latent_codec.quality = quality  # the strings say it, the receiver need not know
        coded = model.compress(x)
        x_hat = receiver.decompress(coded["strings"], coded["shape"])["x_hat"]
        same = torch.equal(x_hat, model.decompress(coded["strings"], coded["shape"])["x_hat"])
        bits = 8 * sum(len(tile[0]) for tile in coded["strings"]) / x[0, 0].numel()
        psnr = -10 * (x_hat - x).square().mean().log10()
        print(f"quality {quality}: {bits:.3f} bpp, {psnr:.2f} dB, receiver has the same: {same}")


if __name__ == "__main__":
    main()
