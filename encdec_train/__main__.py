"""`python -m encdec_train` is `encdec`."""

import sys

from encdec_train.cli import main

sys.exit(main())
