# SPDX-License-Identifier: MIT
"""`python -m groupedmixer`: the command line."""

import sys

from groupedmixer.cli import main

sys.exit(main())
