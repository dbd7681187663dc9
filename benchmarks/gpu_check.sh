#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU; see gpu_check.py, which does the work.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
