"""`python3 -m deploy.containers COMMAND`: see `deploy.containers.commands`."""

import sys

from deploy.containers.commands import main

sys.exit(main(sys.argv[1:]))
