"""A site's policy from the file that people write to the one that is in force.

People write `policy.toml` in the site's folder. Signing copies its exact bytes into the custody folder and signs them
there; until then the older one is in force, or none.
"""

from fedglm.client.site_folder import Site
from fedglm.client.site_settings import SiteError
from fedglm.privacy.custody import KEY, LEDGER, POLICY, establish, is_established
from fedglm.privacy.custody_log import CustodyLog
from fedglm.privacy.durable import write_atomically
from fedglm.privacy.ledger import Ledger
from fedglm.privacy.policy import MOST_BYTES, Policy, sign_policy
from fedglm.privacy.signed_log import LOG


def sign_site_policy(site: Site) -> Policy:
    """Put the policy that lies in the site's folder in force; the first time, open the site's ledger too.

    Raises:
        SiteError: There is no policy, or the site has no keys yet.
        PolicyError: The file is no policy; the older one stays in force.
        PrivacyError: The signing key cannot be used.
        StorageError: A file cannot be written.
    """
    written, folder = site.folder / POLICY, site.custody_folder
    if not site.signing_key.exists():
        raise SiteError(f"{folder} holds no {KEY}: run fedglm client keygen first")
    try:
        if written.stat().st_size > MOST_BYTES:
            raise SiteError(f"{written} is longer than {MOST_BYTES} bytes, so it is no policy")
        content = written.read_bytes()
        policy = Policy.from_toml(content.decode(), origin=str(written))
    except OSError as exc:
        raise SiteError(f"cannot read {written} ({exc.strerror}): copy it from the kit and fill it in") from exc
    except UnicodeDecodeError as exc:
        raise SiteError(f"{written} is not UTF-8: save it so") from exc
    key = site.key()
    if not is_established(folder):
        establish(folder, policy, name=site.name)
    write_atomically(folder / POLICY, content)
    policy = sign_policy(folder / POLICY, key)
    CustodyLog(folder / LOG, key).in_force(policy, Ledger(folder / LEDGER))
    return policy
