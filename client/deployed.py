"""The ClientApp of real sites: what Flower's SuperNode starts for each message, from the code that the site installed."""

from functools import cache
from pathlib import Path

import torch
from flwr.app import Context

from fedglm.client.app import Place, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.node import Node
from fedglm.client.site import Site, open_site
from fedglm.client.site_settings import SiteError

SITE = "site"
"""Key of the SuperNode's node configuration that holds the path of the site's folder."""


def _place(context: Context) -> Place:
    torch.set_num_threads(1)  # sums in other orders give other bits
    folder = context.node_config.get(SITE)
    if not folder:
        raise SiteError("the node does not know its site: start it with fedglm client start")
    site = _site(Path(str(folder)))
    gate = OutboundGate(site.custody(), site.home, site.key())

    def node() -> Node:
        return site.node(gate.plan, gate.envelope)

    return Place(gate, node)


@cache
def _site(folder: Path) -> Site:
    return open_site(folder)


app = build_client_app(_place)
