"""Build what the demo or the tests start, before they start it: QEMU and guest images.

``python house/images.py demo|test|full``; quick when the cache holds all of it. One process for
all of them, where ``dvisor image build`` would be started once an image.
"""

from __future__ import annotations

import sys
from itertools import product

from dvisor import images
from dvisor.errors import DvisorError

ALL = list(product(("tiny", "debian"), images.recipes().kernels))
SETS = {
    "demo": [("debian", images.DEFAULT_KERNEL)],
    "test": [image for image in ALL if image != ("tiny", "rt")],
    "full": ALL,
}


def main(chosen: str) -> None:
    progress = images.progress_on_stderr()
    images.qemu_binary(progress=progress)
    for name, kernel in SETS[chosen]:
        images.build(name, kernel, progress=progress)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except DvisorError as error:
        print(f"dvisor: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
