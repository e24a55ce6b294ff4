"""Which sites may take part: what they handed over, kept in the project until it is revoked.

A key that was revoked once is never taken again, under whatever name. A name has one pair of keys at a time.
"""

from dataclasses import dataclass
from pathlib import Path

from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.keys.site_identity import MAX_BYTES, SiteIdentity, check_site_name
from fedglm.server.errors import ProjectError
from fedglm.server.project.folder import Project


@dataclass(frozen=True)
class Enrolled:
    """What `enrol` did.

    Attributes:
        identity: The site.
        replaced: Whose place it took; None where the name was free.
        is_new: Whether anything changed; the same file twice is no mistake.
    """

    identity: SiteIdentity
    replaced: SiteIdentity | None
    is_new: bool


def enrolled_sites(project: Project) -> dict[str, SiteIdentity]:
    """The sites that may take part, by name.

    Raises:
        PrivacyError: A file is damaged.
    """
    gone = revoked_sites(project)
    found = [_read(path) for path in sorted(project.enrolled_folder.glob("*.pub"))]
    # Whoever is killed while revoking leaves the file in both folders.
    return {identity.name: identity for identity in found if not any(_shares_a_key(identity, other) for other in gone)}


def revoked_sites(project: Project) -> list[SiteIdentity]:
    """What counts no longer.

    Raises:
        PrivacyError: A file is damaged.
    """
    return [_read(path) for path in sorted(project.revoked_folder.glob("*.pub"))]


def provisioned_sites(project: Project) -> list[str]:
    """Names of the sites that a kit was made for."""
    return sorted(path.name for path in project.kits.iterdir() if path.is_dir()) if project.kits.is_dir() else []


def read_identity(path: Path) -> tuple[SiteIdentity, str]:
    """What a site handed over, and the text of it, which is to be kept.

    Raises:
        PrivacyError: The file is no such thing.
        ProjectError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ProjectError(f"cannot read {path}: {exc.strerror}") from exc
    text = content.decode(errors="replace")
    return SiteIdentity.from_text(text, origin=str(path)), text


def enrol(project: Project, path: Path, *, replace: bool = False) -> Enrolled:
    """Let a site take part, from the next start of the SuperLink on or the next look at the folder.

    Args:
        project: Whose.
        path: `SITE.pub`, as the site sent it.
        replace: Revoke the keys that the name has.

    Raises:
        PrivacyError: The file is not what a site hands over.
        ProjectError: The site has no kit here, its name has other keys, or one of its keys is another site's or was
            revoked.
        StorageError: A file cannot be written.
    """
    identity, text = read_identity(path)
    name = identity.name
    if name not in provisioned_sites(project):
        raise ProjectError(
            f"no kit was made for a site {name}: if the name is right, run fedglm provision {project.folder} --site "
            f"{name}"
        )
    sites = enrolled_sites(project)
    if sites.get(name) == identity:
        return Enrolled(identity, None, is_new=False)
    if any(_shares_a_key(identity, other) for other in revoked_sites(project)):
        raise ProjectError(
            f"a key in {path} was revoked: let the site {name} make new ones with fedglm client keygen --replace"
        )
    for other in sites.values():
        if other.name != name and _shares_a_key(identity, other):
            raise ProjectError(f"a key in {path} is the site {other.name}'s: each site makes its own")
    old = sites.get(name)
    if old is not None:
        if not replace:
            raise ProjectError(
                f"the site {name} is enrolled with other keys, made {old.made}: if it made new ones, ask it by "
                f"telephone, then add --replace"
            )
        revoke(project, name)
    write_atomically(project.enrolled_folder / f"{name}.pub", text)
    return Enrolled(identity, old, is_new=True)


def revoke(project: Project, name: str) -> SiteIdentity:
    """Let a site take part no longer; its keys are never taken again.

    Raises:
        ProjectError: No such site is enrolled.
        PrivacyError: A file is damaged.
        StorageError: A file cannot be written.
    """
    check_site_name(name)
    sites = enrolled_sites(project)
    if name not in sites:
        raise ProjectError(f"no site {name} is enrolled; enrolled are: {', '.join(sites) or 'none'}")
    path = project.enrolled_folder / f"{name}.pub"
    identity, text = read_identity(path)
    mark = identity.fingerprints["signing"].replace("-", "")[:16]
    write_atomically(project.revoked_folder / f"{name}-{mark}.pub", text)
    with storage_errors(path):
        path.unlink()
    return identity


def _read(path: Path) -> SiteIdentity:
    return read_identity(path)[0]


def _shares_a_key(one: SiteIdentity, other: SiteIdentity) -> bool:
    return one.signing == other.signing or one.flower == other.flower
