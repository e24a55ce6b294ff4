"""The program of a site's node, `python -m fedglm.cli.node SITE_FOLDER`: what `fedglm client start` starts."""

import sys
from pathlib import Path

from fedglm.client.link_evidence import LinkWatch
from fedglm.client.site_folder import open_site
from fedglm.client.supernode import run_node


def main() -> None:
    """Be the node and, where `site.toml` names a port for them, show its figures to Prometheus."""
    site = open_site(Path(sys.argv[1]))
    if (port := site.settings.site.metrics_port) is not None:
        from fedglm.cli.client_metrics import collectors
        from fedglm.cli.exporter import start

        start(collectors(site), host="127.0.0.1", port=port)
    watch = LinkWatch(site)
    watch.start()
    run_node(site, watch.wake)


if __name__ == "__main__":
    main()
