"""Keys that are locked with a passphrase: who has it gets in, who lacks it is told what to do, and it shows nowhere."""

import shutil

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from site_folders import NAME, make_project

from fedglm.client.site.site_keys import read_flower_private_key, read_flower_public_key
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import passphrase
from fedglm.privacy.keys.signing import SigningKey

WORDS = "correct horse battery staple"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture(autouse=True)
def nobody_says(monkeypatch):
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    monkeypatch.delenv(passphrase.FILE_VARIABLE, raising=False)
    monkeypatch.setattr(passphrase, "_asking", [])


@pytest.fixture
def say(tmp_path, monkeypatch):
    """Put a passphrase into a file of one's own, and name that."""

    def put(words, rights=0o600):
        path = tmp_path / "passphrase"
        path.touch(mode=0o600)
        path.write_text(f"{words}\n")
        path.chmod(rights)
        monkeypatch.setenv(passphrase.FILE_VARIABLE, str(path))

    return put


@pytest.fixture
def site(project, tmp_path, fedglm, say, monkeypatch):
    """The folder of a site with locked keys, whose passphrase nobody says any more."""
    folder = tmp_path / "site"
    shutil.copytree(project.kits / NAME, folder)
    say(WORDS)
    made = fedglm("client", "keygen", folder, "--passphrase")
    assert made.code == 0, made.err
    assert WORDS not in made.out + made.err
    monkeypatch.delenv(passphrase.FILE_VARIABLE)
    return folder


def test_both_files_are_locked(site):
    for path in (site / "flower.key", site / "custody" / "site.key"):
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
        with pytest.raises(TypeError):
            load_pem_private_key(path.read_bytes(), None)
        load_pem_private_key(path.read_bytes(), WORDS.encode())


def test_with_the_passphrase_they_work_as_others_do(site, fedglm, say):
    say(WORDS)
    assert fedglm("client", "sign-policy", site).code == 0
    assert fedglm("client", "keygen", site, "--json").json["new"] is False
    unlocked = load_ssh_private_key(read_flower_private_key(site / "flower.key"), None)
    assert read_flower_public_key(site / "flower.key").startswith("ecdsa-sha2-nistp384 ")
    assert unlocked.curve.name == "secp384r1"


def test_without_it_nothing_is_signed_and_the_message_says_how_to_give_it(site, fedglm):
    line = fedglm("client", "sign-policy", site).line()
    assert "site.key is locked with a passphrase" in line
    assert "FEDGLM_PASSPHRASE_FILE" in line
    checked = fedglm("client", "check", site)
    assert checked.code == 2
    assert "is locked with a passphrase" in " ".join(checked.out.split())


def test_a_wrong_one_opens_nothing(site, fedglm, say):
    say("wrong horse battery staple")
    line = fedglm("client", "sign-policy", site).line()
    assert line.endswith("site.key")
    assert "the passphrase does not open the key" in line
    assert "wrong horse" not in line


def test_one_that_others_may_read_is_refused(site, fedglm, say):
    say(WORDS, rights=0o644)
    assert "others than its owner may use" in fedglm("client", "sign-policy", site).line()


def test_a_short_one_makes_no_keys(project, tmp_path, fedglm, say):
    folder = tmp_path / "short"
    shutil.copytree(project.kits / NAME, folder)
    say("secret")
    assert "at least 12 characters" in fedglm("client", "keygen", folder, "--passphrase").line()
    assert not (folder / "flower.key").exists()
    assert not (folder / "custody").exists()


def test_who_sits_there_is_asked_once(site, monkeypatch):
    asked = []
    passphrase.ask_with(lambda path: asked.append(path.name) or WORDS)
    monkeypatch.setenv(passphrase.VARIABLE, "")  # so that what is typed goes away after the test
    monkeypatch.delenv(passphrase.VARIABLE)
    SigningKey.load(site / "custody" / "site.key")
    read_flower_public_key(site / "flower.key")
    assert asked == ["site.key"]


def test_keys_without_a_passphrase_ask_for_none(tmp_path):
    SigningKey.create(tmp_path / "key")
    passphrase.ask_with(lambda _: pytest.fail("asked"))
    SigningKey.load(tmp_path / "key")


def test_nobody_is_asked_where_nobody_sits(site):
    with pytest.raises(PrivacyError, match="is locked with a passphrase"):
        SigningKey.load(site / "custody" / "site.key")
