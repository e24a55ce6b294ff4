"""Enrolment of sites: the public keys that each one sent, kept in the project until they are revoked.

A revoked key is never accepted again, under any name. A site has one pair of keys at a time.
"""

from dataclasses import dataclass
from pathlib import Path

from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.keys.site_identity import MAX_BYTES, SiteIdentity, check_site_name
from fedglm.server.errors import ProjectError
from fedglm.server.project.folder import Project


@dataclass(frozen=True)
class Enrolment:
    """Result of `enrol`.

    Attributes:
        identity: Name and public keys of the site.
        replaced: Identity that it replaced; None where the name was not enrolled.
        is_new: Whether anything changed; enrolling the same file twice is no error.
    """

    identity: SiteIdentity
    replaced: SiteIdentity | None
    is_new: bool


def read_enrolled_sites(project: Project) -> dict[str, SiteIdentity]:
    """Read the identities of the sites that may take part, by name.

    Raises:
        PrivacyError: A file is damaged.
    """
    revoked = read_revoked_sites(project)
    identities = [_read(path) for path in sorted(project.enrolled_folder.glob("*.pub"))]
    # A process that is killed while revoking leaves the file in both folders.
    return {
        identity.name: identity
        for identity in identities
        if not any(_shares_a_key(identity, other) for other in revoked)
    }


def read_revoked_sites(project: Project) -> list[SiteIdentity]:
    """Read the identities that were revoked.

    Raises:
        PrivacyError: A file is damaged.
    """
    return [_read(path) for path in sorted(project.revoked_folder.glob("*.pub"))]


def list_provisioned_sites(project: Project) -> list[str]:
    """List the names of the sites with a startup kit."""
    return sorted(path.name for path in project.kits.iterdir() if path.is_dir()) if project.kits.is_dir() else []


def read_identity(path: Path) -> tuple[SiteIdentity, str]:
    """Read a site's `SITE.pub`; return the identity and the file's text.

    Raises:
        PrivacyError: The file is malformed.
        ProjectError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ProjectError(f"cannot read {path}: {exc.strerror}") from exc
    text = content.decode(errors="replace")
    return SiteIdentity.from_text(text, origin=str(path)), text


def enrol(project: Project, path: Path, *, replace: bool = False) -> Enrolment:
    """Enrol a site; it may take part once the SuperLink has started or reconciled its list.

    Args:
        project: Project of the server.
        path: `SITE.pub`, as sent by the site.
        replace: Revoke the keys that the site is enrolled with.

    Raises:
        PrivacyError: The file is malformed.
        ProjectError: The site has no startup kit here, is enrolled with other keys, or one of its keys is another
            site's or was revoked.
        StorageError: A file cannot be written.
    """
    identity, text = read_identity(path)
    name = identity.name
    if name not in list_provisioned_sites(project):
        raise ProjectError(
            f"no kit was made for a site {name}: if the name is right, run fedglm provision {project.folder} --site "
            f"{name}"
        )
    sites = read_enrolled_sites(project)
    if sites.get(name) == identity:
        return Enrolment(identity, None, is_new=False)
    if any(_shares_a_key(identity, other) for other in read_revoked_sites(project)):
        raise ProjectError(
            f"a key in {path} was revoked: let the site {name} make new ones with fedglm client keygen --replace"
        )
    for other in sites.values():
        if other.name != name and _shares_a_key(identity, other):
            raise ProjectError(f"a key in {path} is the site {other.name}'s: each site makes its own")
    replaced = sites.get(name)
    if replaced is not None:
        if not replace:
            raise ProjectError(
                f"the site {name} is enrolled with other keys, made {replaced.made}: if it made new ones, ask it by "
                f"telephone, then add --replace"
            )
        revoke(project, name)
    write_atomically(project.enrolled_folder / f"{name}.pub", text)
    return Enrolment(identity, replaced, is_new=True)


def revoke(project: Project, name: str) -> SiteIdentity:
    """Revoke a site's keys, which are never accepted again; return its identity.

    Raises:
        ProjectError: No such site is enrolled.
        PrivacyError: A file is damaged.
        StorageError: A file cannot be written.
    """
    check_site_name(name)
    sites = read_enrolled_sites(project)
    if name not in sites:
        raise ProjectError(f"no site {name} is enrolled; enrolled are: {', '.join(sites) or 'none'}")
    path = project.enrolled_folder / f"{name}.pub"
    identity, text = read_identity(path)
    suffix = identity.fingerprints["signing"].replace("-", "")[:16]
    write_atomically(project.revoked_folder / f"{name}-{suffix}.pub", text)
    with storage_errors(path):
        path.unlink()
    return identity


def _read(path: Path) -> SiteIdentity:
    return read_identity(path)[0]


def _shares_a_key(one: SiteIdentity, other: SiteIdentity) -> bool:
    return one.signing == other.signing or one.flower == other.flower
