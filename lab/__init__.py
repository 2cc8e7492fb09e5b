"""Every command imports this before all that an older Python lacks; it is written for such a one."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    found = sys.version.split()[0]
    print(f"error: Python {found} is too old; write: python3.11 -m venv .venv (or a newer one)", file=sys.stderr)
    sys.exit(2)
