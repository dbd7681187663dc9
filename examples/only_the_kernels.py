# SPDX-License-Identifier: MIT
"""The kernels alone, in a model of one's own: attention with a persistent cache of keys and values.

The model predicts each line of a picture from the lines above it, strip by strip. It is trained in
plain PyTorch on all lines at once. It then runs line by line on `groupedmixer_ext.ops`: what it
needs of the lines above stays in the cache, so a line costs the same whether it is first or last.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from example_pictures import Pictures
from torch import Tensor, nn

from groupedmixer_ext import ops

LINES, STRIP = 32, 16  # G lines of strips of 16 pixels
HEADS = 2
WIDTH = 32 * HEADS  # the kernels' heads have 32 dimensions


class LineModel(nn.Module):
    """A transformer block over the lines of a strip, in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(STRIP, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)  # the kernels' epsilon
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.step_bias = nn.Parameter(torch.zeros(HEADS, LINES, LINES))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, STRIP)

    def forward(self, lines: Tensor) -> Tensor:  # [T, G, 16] -> [T, G, 16]
        """Predicts every line from those before it, all at once."""
        above = F.pad(lines, (0, 0, 1, 0))[:, :-1]  # line g sees lines 0 .. g - 1
        x = self.embed(above)
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, HEADS, 32)).permute(2, 0, 3, 1, 4)
        steps = lines.shape[1]
        later = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        mask = self.step_bias[:, :steps, :steps].masked_fill(later, -torch.inf)
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=mask)  # [T, heads, G, 32]
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))
        return above + self.head(x)


class LineKernels:
    """The same model on the kernels, a line at a time."""

    def __init__(self, model: LineModel) -> None:
        def packed(layer: nn.Linear) -> tuple[Tensor, Tensor]:  # as the kernels read it
            return ops.pack_weight(layer.weight.detach()), layer.bias.detach()

        def norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor]:
            return layer.weight.detach(), layer.bias.detach()

        self.embed, self.qkv, self.out = map(packed, (model.embed, model.qkv, model.out))
        self.up, self.down, self.head = map(packed, (model.up, model.down, model.head))
        self.norm, self.mlp_norm = norm(model.norm), norm(model.mlp_norm)
        self.step_bias = model.step_bias.detach()

    def new_cache(self, tokens: int) -> ops.KVCache:
        """Room for the keys and values of all lines of T strips."""
        return ops.KVCache(tokens, HEADS, LINES)

    def predict(self, above: Tensor, cache: ops.KVCache) -> Tensor:  # [T, 16] -> [T, 16]
        """The next line, from the one above it and the cache; the cache is updated in place."""
        x = ops.linear(above, *self.embed)
        qkv = ops.linear(x, *self.qkv, norm=self.norm)
        attended = ops.append_attention(qkv, cache, self.step_bias, step=cache.steps_done)
        x = ops.linear(attended, *self.out, residual=x)
        hidden = ops.linear(x, *self.up, activation="gelu", norm=self.mlp_norm)
        x = ops.linear(hidden, *self.down, residual=x)
        return ops.linear(x, *self.head, residual=above)


def strips(pictures: Pictures) -> Tensor:  # [T, G, 16] in -0.5..0.5
    """Green of some pictures, cut into strips."""
    green = pictures.batch(16)[:, 1] - 0.5  # [16, 32, 32]
    return green.unflatten(2, (-1, STRIP)).transpose(1, 2).flatten(0, 1).contiguous()


def line_by_line(kernels: LineKernels, lines: Tensor) -> Tensor:  # [T, G, 16]
    """Predictions of all lines, each made before the line itself is seen."""
    cache, above = kernels.new_cache(len(lines)), torch.zeros_like(lines[:, 0])
    predictions = []
    for line in lines.unbind(1):
        predictions.append(kernels.predict(above, cache))
        above = line.contiguous()
    return torch.stack(predictions, 1)


def main() -> None:
    """Trains, moves the model to the kernels, and compares results and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures (default: made up ones)")
    parser.add_argument("--steps", type=int, default=300, help="to train (default: %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    pictures = Pictures(arguments.data, LINES)
    model = LineModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(arguments.steps):
        lines = strips(pictures)
        loss = F.mse_loss(model(lines), lines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:4}  mean squared error {loss:.5f}")

    kernels, lines = LineKernels(model), strips(pictures)
    with torch.no_grad():
        expected = model(lines)
        start = time.perf_counter()
        predictions = line_by_line(kernels, lines)
        middle = time.perf_counter()
        for count in range(1, LINES + 1):  # PyTorch without a cache: all lines so far, every time
            model(lines[:, :count])
        end = time.perf_counter()
    # keys and values are rounded to float16 in the cache, which is all that differs
    print(f"largest difference from PyTorch: {(predictions - expected).abs().max():.2g}")
    print(f"line by line: {middle - start:.4f} s, PyTorch without a cache: {end - middle:.4f} s")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again = line_by_line(kernels, lines)
    torch.set_num_threads(threads)
    print(f"the same bits with 1 and {threads} threads: {torch.equal(again, predictions)}")


if __name__ == "__main__":
    main()
