"""What a site hands over, and who may take part: `fedglm server enrol` and `revoke`."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from projects import Site, files_of, make_project

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.site_identity import SiteIdentity, check_site_name
from fedglm.server.project.enrolment import read_enrolled_sites, read_revoked_sites

A, B, C = Site.make("a"), Site.make("b"), Site.make("c")


@pytest.fixture
def project(tmp_path):
    """A project with kits for a and b."""
    return make_project(tmp_path / "fl")


@pytest.fixture
def server(project, fedglm):
    """`fedglm server COMMAND ... -C PROJECT`."""
    return lambda *arguments: fedglm("server", *arguments, "-C", project.folder)


def test_an_identity_comes_back_from_its_text():
    assert SiteIdentity.from_text(A.text) == A.identity
    assert SiteIdentity.from_text(" \r\n" + A.text.replace("\n", "\r\n") + "\n\n") == A.identity
    assert A.identity.fingerprints != B.identity.fingerprints
    assert set(A.identity.fingerprints) == {"flower", "signing"}


@given(st.data())
def test_no_character_of_an_identity_can_change(data):
    text = A.text
    start = text.index("name = ")
    place = data.draw(st.integers(start, len(text) - 2))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != text[place]))
    with pytest.raises(PrivacyError):
        SiteIdentity.from_text(text[:place] + other + text[place + 1 :])


@given(st.text(max_size=300))
def test_any_text_is_an_identity_or_one_clear_error(text):
    with pytest.raises(PrivacyError) as caught:
        SiteIdentity.from_text(text)
    assert len(str(caught.value)) < 600


def test_an_identity_that_was_put_together_is_refused():
    swapped = B.identity.to_text(B.signing).replace(B.identity.flower, A.identity.flower)
    with pytest.raises(PrivacyError, match="its own key's signature"):
        SiteIdentity.from_text(swapped)
    with pytest.raises(PrivacyError, match="more than a site hands over"):
        SiteIdentity.from_text(A.text + 'extra = "x"\n')
    with pytest.raises(PrivacyError, match="longer than 4096"):
        SiteIdentity.from_text(A.text + "#" * 5000)
    with pytest.raises(PrivacyError, match="another key"):
        A.identity.to_text(B.signing)


def test_an_identity_holds_nothing_but_what_it_should():
    small = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    good = A.identity
    for flower in (small.decode(), good.flower + " me@host", good.flower[:-8], "", "ssh-ed25519 AAAA", "\n"):
        with pytest.raises(PrivacyError, match="public key"):
            SiteIdentity("a", flower, good.signing, good.made)
    for made in ("", "2027-1-4", "20270104", "2027-02-30", "today"):
        with pytest.raises(PrivacyError, match="the day"):
            SiteIdentity("a", good.flower, good.signing, made)
    for name in ("", ".", "..", "a/b", "a b", "-x", "x.zip", "x.ZIP", "ä", "a\n", "x" * 65):
        with pytest.raises(PrivacyError, match="cannot name a site"):
            check_site_name(name)
    assert check_site_name("St.Mary_2-b") == "St.Mary_2-b"


def test_a_site_is_enrolled(server, project, tmp_path):
    about = server("enrol", A.hand_over(tmp_path), "--json").json
    assert about["fingerprints"] == A.identity.fingerprints
    assert (about["new"], about["replaced"], about["registered"]) == (True, None, False)
    assert read_enrolled_sites(project) == {"a": A.identity}
    again = server("enrol", A.hand_over(tmp_path))
    assert "already" in again.out
    assert A.identity.fingerprints["signing"] in again.out
    assert A.identity.fingerprints["flower"] in again.out


def test_a_second_key_needs_to_be_asked_for(server, project, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    renewed = Site.make("a")
    assert "add --replace" in server("enrol", renewed.hand_over(tmp_path)).line()
    assert read_enrolled_sites(project) == {"a": A.identity}
    about = server("enrol", renewed.hand_over(tmp_path), "--replace", "--json").json
    assert about["replaced"] == A.identity.fingerprints
    assert read_enrolled_sites(project) == {"a": renewed.identity}
    assert read_revoked_sites(project) == [A.identity]


def test_who_is_revoked_stays_out(server, project, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    assert "is revoked" in server("revoke", "a").out
    assert read_enrolled_sites(project) == {}
    assert "no site a is enrolled; enrolled are: none" in server("revoke", "a").line()
    assert "was revoked" in server("enrol", A.hand_over(tmp_path)).line()
    for half in (Site.make("b", flower=A.flower), Site.make("b", signing=A.signing)):
        assert "was revoked" in server("enrol", half.hand_over(tmp_path)).line()
    fresh = Site.make("a")
    assert server("enrol", fresh.hand_over(tmp_path)).code == 0
    assert read_enrolled_sites(project) == {"a": fresh.identity}


def test_each_site_has_keys_of_its_own(server, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    for half in (Site.make("b", flower=A.flower), Site.make("b", signing=A.signing)):
        assert "is the site a's" in server("enrol", half.hand_over(tmp_path)).line()


def test_who_has_no_kit_is_a_slip(server, tmp_path):
    assert "--site c" in server("enrol", C.hand_over(tmp_path)).line()


def test_a_file_that_is_no_identity_is_one_line(server, project, tmp_path):
    path = tmp_path / "x.pub"
    before = files_of(project.folder)
    for content in (b"", b"\xff\xfe", A.text.replace("a", "b").encode(), bytes(10_000), A.text[:200].encode()):
        path.write_bytes(content)
        assert str(path) in server("enrol", path).line()
    assert "No such file" in server("enrol", tmp_path / "none.pub").line()
    assert "Is a directory" in server("enrol", tmp_path).line()
    assert files_of(project.folder) == before


def test_a_damaged_list_lets_nobody_in(server, project, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    (project.enrolled_folder / "a.pub").write_text("x")
    assert "a.pub" in server("enrol", B.hand_over(tmp_path)).line()
    assert "a.pub" in server("status", "--json").line()


def test_a_revocation_that_was_cut_short_counts(server, project, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    server("enrol", B.hand_over(tmp_path))
    shutil.copy(project.enrolled_folder / "a.pub", project.revoked_folder / "a-0.pub")  # and killed before the unlink
    assert read_enrolled_sites(project) == {"b": B.identity}
    assert "was revoked" in server("enrol", A.hand_over(tmp_path)).line()


def test_there_is_no_project(fedglm, tmp_path):
    for command in ("start", "stop", "status"):
        assert "is no project" in fedglm("server", command, "-C", tmp_path).line()
    assert "is no project" in fedglm("server", "revoke", "a", "-C", tmp_path).line()
