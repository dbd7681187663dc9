# SPDX-License-Identifier: MIT
"""Training of GroupedMixer models: data, loss, loop. ``python -m groupedmixer.training --help``."""
