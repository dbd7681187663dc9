# SPDX-License-Identifier: MIT
"""Writes the golden files: ``python tests/golden/make.py``. Read README.md first."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import golden_cases as cases  # noqa: E402

import groupedmixer  # noqa: E402

REFUSAL = (
    "the goldens are of {identity}, and so are files that people have. Bytes or pixels that change "
    "need another arithmetic id or container version: change it, then run this again. Only while "
    "no version of the format is released may they change under it: --force-unreleased."
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force-unreleased", action="store_true")
    forced = parser.parse_args(arguments).force_unreleased
    if cases.GOLDENS.exists() and not forced:
        stored = json.loads(cases.GOLDENS.read_text())["identity"]
        if stored == cases.identity():
            sys.exit(REFUSAL.format(identity=stored))
    if not cases.WEIGHTS.exists() or forced:
        groupedmixer.save_weights(cases.make_weights(), cases.WEIGHTS, "golden")
    codec = groupedmixer.load(str(cases.WEIGHTS))
    for case in cases.PICTURES:
        data = codec.compress(cases.pixels(case), case.quality)
        (cases.GOLDEN / f"{case.name}.gmx").write_bytes(data)
    values = cases.measure(cases.PASSES[:1])[0]
    content = {"identity": cases.identity(), "values": values}
    cases.WEIGHTS.chmod(0o644)
    cases.GOLDENS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
