# SPDX-License-Identifier: MIT
"""GroupedMixer under compressai's conventions: entries in its zoo, and its command lines with them.

Once groupedmixer is imported, compressai knows ``groupedmixer-rt`` and its sisters, one a
configuration (`register` is called when somebody imports ``compressai.zoo``, or at once):

- ``compressai.zoo.image_models`` and ``compressai.zoo.models``: functions of (quality, metric,
  pretrained, progress) that make a model
- ``compressai.zoo.image.model_architectures`` and ``cfgs``: the class and its arguments

compressai's qualities are the integers 1 to 8; they are levels 0 to 7 of ours, which have rates of
their own: quality 3 of one model is not quality 3 of another. Its command lines do not import
groupedmixer of themselves; this one does, and then runs them:

    python -m groupedmixer.compressai eval_model pretrained kodak/ -a groupedmixer-rt -q 1,4,8
    python -m groupedmixer.compressai eval_model checkpoint kodak/ -a groupedmixer-rt -p my.pth.tar
    python -m groupedmixer.compressai update_model my.pth.tar -a groupedmixer-rt

A checkpoint is a state dict, or a dictionary with one under ``state_dict``, of a `GroupedMixer`. It
holds its configuration, which decides what is built; the name given with ``-a`` is what reports
say. ``-c`` changes nothing, as these models have one coder; ``--half`` fails, as they code in
float32.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .config import CONFIGS, NUM_LEVELS, Config, get_config

if TYPE_CHECKING:
    from .model import GroupedMixer

# No import of compressai or of our model at the top: `register` runs while compressai is being
# imported, and that may be because our model is.

__all__ = ["TOOLS", "Architecture", "main", "make_model", "register"]

TOOLS = ("eval_model", "update_model")
"""compressai's command lines that take the name of a model: modules of ``compressai.utils``."""

_USAGE = f"usage: python -m groupedmixer.compressai {{{','.join(TOOLS)}}} ..."


class Architecture:
    """What compressai's dictionaries hold in place of `GroupedMixer`, which it makes."""

    def __new__(cls, config: Config) -> GroupedMixer:
        from .model import GroupedMixer

        return GroupedMixer(config)

    @staticmethod
    def from_state_dict(state_dict: Mapping[str, Any]) -> GroupedMixer:
        """As `GroupedMixer.from_state_dict`."""
        from .model import GroupedMixer

        return GroupedMixer.from_state_dict(state_dict)


def make_model(
    config_name: str,
    quality: float,
    metric: str = "mse",
    pretrained: bool = False,
    progress: bool = True,
) -> GroupedMixer:
    """A model as functions of compressai's zoo make one.

    Parameters
    ----------
    config_name
        Of `groupedmixer.config.CONFIGS`.
    quality
        1 (small) .. 8 (fine), compressai's numbers: the model's ``quality`` is one less. One set of
        weights serves all of them, and the numbers between.
    metric
        ``"mse"``: the only one that there are weights for.
    pretrained
        Whether with the bundled weights of that configuration, in eval mode; else with random ones.
    progress
        Not used, as nothing is downloaded.

    Raises
    ------
    ValueError
        If an argument breaks a rule, or there are no weights of that configuration.
    """
    from .zoo import load_model

    del progress
    if metric != "mse":
        raise ValueError(f"metric must be 'mse', got {metric!r}")
    if not 1 <= quality <= NUM_LEVELS:
        raise ValueError(f"quality must be in 1..{NUM_LEVELS}, got {quality}")
    config = get_config(config_name)
    model = load_model(config_name) if pretrained else Architecture(config)
    model.quality = quality - 1
    return model


def register() -> None:
    """Adds our entries to compressai's dictionaries; again is no harm."""
    from compressai.zoo import image, image_models, models

    for config in CONFIGS.values():
        name = f"groupedmixer-{config.name}"
        function = functools.partial(make_model, config.name)
        image_models[name] = function
        models[name] = function
        image.model_architectures[name] = Architecture
        image.cfgs[name] = {quality: (config,) for quality in range(1, NUM_LEVELS + 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of `TOOLS`: its name, then the arguments it takes. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in TOOLS:
        tool = importlib.import_module(f"compressai.utils.{given[0]}.__main__")
        sys.argv[0] = f"python -m groupedmixer.compressai {given[0]}"  # what its --help says
        tool.main(given[1:])
        return 0
    if given in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    wrong = f"got {given[0]!r}" if given else "got none"
    print(f"{_USAGE}\nerror: the tool must be one of {', '.join(TOOLS)}, {wrong}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
