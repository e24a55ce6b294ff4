"""The program of a site's node, `python -m fedglm.cli.client.node SITE_FOLDER`: what `fedglm client start` starts."""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Final

from fedglm.client.site.folder import open_site
from fedglm.client.supernode.link_evidence import LinkWatcher
from fedglm.client.supernode.main import run_node
from fedglm.core.processes.parent_process import end_with_parent

LOG: Final = logging.getLogger(__name__)


def main() -> None:
    """Run the node and, where `site.toml` names a port for it, serve its metrics to Prometheus."""
    end_with_parent()
    os.umask(0o077)
    threading.excepthook = _end_with_thread
    site = open_site(Path(sys.argv[1]))
    if (port := site.settings.site.metrics_port) is not None:
        from fedglm.cli.client.metrics import collectors
        from fedglm.cli.process.exporter import start

        start(collectors(site), host="127.0.0.1", port=port)
    watch = LinkWatcher(site)
    watch.start()
    try:
        run_node(site, watch.request_check)
        LOG.error("the node ends, for its connection to the server has ended")
    except Exception:
        LOG.exception("the node ends, for it has failed")
    os._exit(1)  # Flower's threads would otherwise keep a process alive that does nothing


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """End the process when a thread fails, since a node without it only seems to work; its supervisor restarts it."""
    if failed.exc_type is SystemExit:
        return
    name = failed.thread.name if failed.thread is not None else "unknown"
    LOG.error("the node ends, for its thread %s has failed", name, exc_info=failed.exc_value)
    os._exit(1)


if __name__ == "__main__":
    main()
