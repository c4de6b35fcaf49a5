"""`python -m sandbox [PORT]`: the stand-in for iconik by itself."""

import sys

from sandbox import main

sys.exit(main(sys.argv[1:]))
