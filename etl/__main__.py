"""Runs the command line as `python -m etl`."""

import sys

from etl.cli import main

sys.exit(main())
