"""The program of a site's worker, `python -m fedglm.client.supernode.worker_process SITE_FOLDER`."""

import sys
from pathlib import Path

from fedglm.client.supernode.lean_imports import import_lean

if __name__ == "__main__":
    import_lean()
    from fedglm.client.supernode.worker import serve

    serve(Path(sys.argv[1]))
