"""Names of sites by Flower's node ids, as the SuperLink knows the nodes' keys."""

from projects import Site, make_project

from fedglm.server.deployment.node_names import NodeNames
from fedglm.server.errors import UnreachableError
from fedglm.server.project.enrolment import enrol
from fedglm.server.superlink.control import EnrolledNode


def test_a_node_is_named_by_its_key_and_the_superlink_is_asked_once(tmp_path):
    project, berlin, asked = make_project(tmp_path / "fl"), Site.make("a"), []
    enrol(project, berlin.hand_over(tmp_path))

    def nodes():
        asked.append(1)
        if len(asked) == 1:
            raise UnreachableError("the SuperLink does not answer")
        return [EnrolledNode(7, berlin.identity.flower, "online", None), EnrolledNode(8, "another", "online", None)]

    names = NodeNames(project, nodes)
    assert names.find(7) is None
    assert [names.find(7), names.find(7), names.find(8), names.find(8), names.find(9)] == ["a", "a", None, None, None]
    assert len(asked) == 4
