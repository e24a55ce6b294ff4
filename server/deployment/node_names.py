"""Names of the sites by Flower's node ids, from the keys with which the SuperLink authenticates the nodes."""

import logging
from collections.abc import Callable
from functools import partial

from fedglm.privacy.errors import PrivacyError
from fedglm.server.errors import ProjectError
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project
from fedglm.server.superlink.control import EnrolledNode, list_nodes

LOG = logging.getLogger(__name__)


class NodeNames:
    """Finds the site of a node; the SuperLink is asked once for each node.

    Args:
        project: Project of the server.
        nodes: Lists the SuperLink's nodes; raises `ProjectError` where it does not respond. None asks the SuperLink.
    """

    def __init__(self, project: Project, nodes: Callable[[], list[EnrolledNode]] | None = None) -> None:
        self._project = project
        self._list_nodes = nodes or partial(list_nodes, project)
        self._names: dict[int, str | None] = {}

    def find(self, node_id: int) -> str | None:
        """Return the name of a node's site; None where no enrolled key is its, or the SuperLink does not answer."""
        if node_id not in self._names:
            try:
                keys = {node.node_id: node.key for node in self._list_nodes()}
                names = {identity.flower: name for name, identity in read_enrolled_sites(self._project).items()}
            except (OSError, PrivacyError, ProjectError) as exc:
                LOG.warning("the name of node %d cannot be read: %s", node_id, exc)
                return None
            self._names[node_id] = names.get(keys.get(node_id, ""))
        return self._names[node_id]
