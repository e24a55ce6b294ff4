"""Which sites of a run were revoked since it began, read from the project's folder as the commands change it."""

import pytest
from projects import Site, make_project

from fedglm.server.project.enrolment import enrol, read_enrolled_sites, revoke
from fedglm.server.project.revocations import Revocations


@pytest.fixture
def project(tmp_path):
    """A project with a and b enrolled."""
    made = make_project(tmp_path / "fl")
    for name in "ab":
        enrol(made, Site.make(name).hand_over(tmp_path))
    return made


@pytest.fixture
def revocations(project):
    return Revocations(project, {name: identity.signing for name, identity in read_enrolled_sites(project).items()})


def test_a_revoked_site_is_found_and_stays_one_whatever_it_is_enrolled_with(project, revocations, tmp_path):
    assert revocations.find() == set()
    revoke(project, "b")
    assert revocations.find() == {"b"}
    enrol(project, Site.make("b").hand_over(tmp_path))
    assert revocations.find() == {"b"}


def test_a_site_with_other_keys_is_another_one(project, revocations, tmp_path):
    enrol(project, Site.make("a").hand_over(tmp_path), replace=True)
    assert revocations.find() == {"a"}


def test_what_cannot_be_read_changes_nothing_until_it_can(project, revocations, caplog):
    path = project.enrolled_folder / "a.pub"
    text = path.read_text()
    path.unlink()
    path.write_text("damaged")
    (project.enrolled_folder / "b.pub").unlink()
    assert revocations.find() == set()
    assert "whether a site was revoked cannot be read" in caplog.text
    path.write_text(text)
    assert revocations.find() == {"b"}
