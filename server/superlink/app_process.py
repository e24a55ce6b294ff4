"""Process of one run: Flower's ServerApp process, but its token is read from standard input.

It is started as `python -m fedglm.server.superlink.app_process`.
Flower's own command takes the token as an argument, which every user of the machine can read.
"""

import sys
from queue import Queue

from flwr.supercore.logger import mirror_output_to_queue, restore_output
from flwr.superlink.runtime import run_serverapp

from fedglm.core.processes.parent_process import end_with_parent
from fedglm.server.project.folder import open_from_environment


def main() -> None:
    """Run the app of the task whose token is on standard input, and report its result to the SuperLink."""
    end_with_parent()
    project = open_from_environment()
    token = sys.stdin.readline().strip()
    lines: Queue[str | None] = Queue()
    mirror_output_to_queue(lines)
    run_serverapp(
        runtime_api_address=project.settings.control_address,
        log_queue=lines,
        token=token,
        insecure=False,
        certificates=project.authority.read_bytes(),
        runtime_dependency_install=False,
    )
    restore_output()


if __name__ == "__main__":
    main()
