"""Signing of a site's policy, which puts it in force.

People write `policy.toml` in the site's folder. Signing copies its exact bytes into the custody folder and signs them
there; until then the previous policy is in force, or none.
"""

from typing import NamedTuple

from fedglm.client.site.folder import Site
from fedglm.client.site.row_counts import HARMLESS, RecordsError, count_rows
from fedglm.client.site.settings import SiteError
from fedglm.core.files import write_atomically
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.custody.store import KEY, LEDGER, POLICY, initialize, is_established
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import MAX_BYTES, sign_policy


class SignedPolicy(NamedTuple):
    """The policy that is in force after signing.

    Attributes:
        policy: The policy.
        left_out: Description of the rows that no run can use, which quotes none of them; empty where there are none.
    """

    policy: Policy
    left_out: str


def sign_site_policy(site: Site, *, leave_out: bool = False) -> SignedPolicy:
    """Sign the policy in the site's folder and put it in force; the first time, create the site's ledger too.

    With that signature the site is responsible for its records: later runs leave out unusable rows and do not report
    them to the server. Therefore all rows are checked against `site.toml` here, if their file can be read: where it
    cannot, `preflight` reports why.

    Args:
        site: The site.
        leave_out: Sign although there are rows that no run can use.

    Raises:
        SiteError: There is no policy, the site has no keys yet, or there are rows that cannot be used.
        PolicyError: The file is no policy; the previous one stays in force.
        PrivacyError: The signing key cannot be used.
        StorageError: A file cannot be written.
    """
    written, folder = site.folder / POLICY, site.custody_folder
    if not site.signing_key.exists():
        raise SiteError(f"{folder} holds no {KEY}: run fedglm client keygen first")
    try:
        if written.stat().st_size > MAX_BYTES:
            raise SiteError(f"{written} is longer than {MAX_BYTES} bytes, so it is no policy")
        content = written.read_bytes()
        policy = Policy.from_toml(content.decode(), origin=str(written))
    except OSError as exc:
        raise SiteError(f"cannot read {written} ({exc.strerror}): copy it from the kit and fill it in") from exc
    except UnicodeDecodeError as exc:
        raise SiteError(f"{written} is not UTF-8: save it so") from exc
    left_out = _describe_left_out(site)
    if left_out and not leave_out:
        raise SiteError(f"{site.source} holds {left_out}: correct them, or sign with --leave-out")
    key = site.key()
    if not is_established(folder):
        initialize(folder, policy, name=site.name)
    write_atomically(folder / POLICY, content)
    policy = sign_policy(folder / POLICY, key)
    ReleaseTransaction(Ledger(folder / LEDGER), CustodyLog(folder / LOG, key)).put_in_force(policy)
    return SignedPolicy(policy, left_out)


def _describe_left_out(site: Site) -> str:
    """Describe the rows that no run can use; blank rows are left out without mention."""
    if site.settings.data.is_builtin:
        return ""
    try:
        return count_rows(site).faults.in_words(but=HARMLESS)
    except RecordsError:
        return ""
