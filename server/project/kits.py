"""Startup kit of a site: the server's address, the keys to trust, and two files to fill in. All of it is public.

kit.toml      the federation, the site's name, the server's address, keys and fingerprints
ca.pem        certificate of the authority that issued the server's certificate
site.toml     settings of the site's own node: where the data is, and how to read it
policy.toml   the site's policy; the initial one permits next to nothing
README.txt    instructions, in five steps
"""

import io
import zipfile
from pathlib import Path

import tomli_w

from fedglm.core.files import write_atomically
from fedglm.privacy.keys.site_identity import check_site_name
from fedglm.privacy.policy.policy import Policy
from fedglm.server.project.certificates import read_certificate
from fedglm.server.project.folder import Project

_README = """\
The kit of the site {site} for the federation {name}
{rule}

Nothing in it is secret. Nobody but you can make the keys of your site, and they never leave your machine.

1. On the machine that holds the data (Python 3.11 or newer), install fedglm, unpack this kit, and go into its folder.

2. Call the people who run the server, at a number that you know from elsewhere, and compare:

       server's key      {server_key}
       authority         {authority}

3. Make the site's keys, and send SITE.pub (not secret) to the people who run the server; they will call you to compare
   the two fingerprints that the command prints:

       fedglm client keygen .

4. Fill in site.toml (where the data lie) and policy.toml (what may leave; with the person who answers for that), then
   sign the policy. That also holds every row to site.toml: in a run, rows that cannot be used are left out, and the
   server never hears of it:

       fedglm client sign-policy .

5. Check everything, then start. The node connects outwards to {address}; no port has to be opened here.

       fedglm client check .
       fedglm client start .
"""

_SITE = """\
# What the site {site} tells its own node. It stays here; the server never sees this file.
# A relative path counts from this file's folder. What stands as a comment is an example.

[site]
name = "{site}"

# Where the node keeps its memory between rounds, its log and its pid file.
state = "state"

# Where the site keeps its key, its policy, its privacy ledger.
custody = "custody"

# The key that encrypts that memory on the disk: fedglm client keygen --state-key makes it.
#state_key = "state.key"

# What trains: "auto" takes a GPU where there is one; else "cpu" or "cuda".
device = "auto"

# Threads of a training step. With one, the site repeats a simulation to the bit.
threads = 1

# An answer leaves a whole multiple of so many seconds after its question came, for how long training took says
# something of the records that were drawn.
answer_every_s = 1.0

# Where the server is, HOST:PORT, once it is no longer where the kit says ({address}).
#server = "{address}"

# The node's figures for Prometheus, on this machine alone, at http://127.0.0.1:PORT/metrics.
#metrics_port = 9464

[data]
# The records: a file in JSONL or CSV, also .gz. Not given yet: without it the node does not start.
#source = "records.csv"

# Fields of the records that a run may read; it reads no others.
#text_field = "text"
#label_field = "diagnosis"
#feature_fields = ["age", "creatinine"]

# All classes that label_field may hold. A run that tells classes must name the same ones; another one is refused.
#class_names = ["benign", "malignant"]

# Whether values of a CSV file may hold line breaks, within quotes. Without it each line is a row. JSONL needs it never.
#line_breaks = true

# The field that says whose a record is: a patient's records are then protected, and held out, together.
#unit_field = "patient_id"

# This site's copy of the public table that a run places its bins by, where the run asks for one.
#public_reference = "reference.csv"

# For a trial with built-in data, such as source = "breast-cancer": the first of four parts of them.
#share = "0/4"

[model]
# This site's copy of the pretrained model (a Hugging Face folder) that a run starts from, where the run asks for one.
#path = "models/glm"
"""


def write_kit(project: Project, site: str) -> Path:
    """Write the startup kit of a site, and beside it the same as one .zip.

    The two files to fill in are not replaced if they exist: the server's operator may have filled in what a run needs.

    Args:
        project: Project of the server.
        site: Name of the site.

    Returns:
        Path of the .zip.

    Raises:
        PrivacyError: The name is not a valid name of a site, or the server's key cannot be used.
        ProjectError: The authority's certificate is damaged.
        StorageError: A file cannot be written.
    """
    folder = project.kits / check_site_name(site)
    settings, server = project.settings, project.signing_key.public
    authority = read_certificate(project.authority).sha256
    kit = {
        "federation": settings.name,
        "site": site,
        "server": settings.address,
        "signing": server.hex,
        "authority": authority,
    }
    title = f"The kit of the site {site} for the federation {settings.name}"
    readme = _README.format(
        site=site,
        name=settings.name,
        rule="=" * len(title),
        server_key=server.fingerprint(),
        authority=format_fingerprint(authority),
        address=settings.address,
    )
    files = {
        "kit.toml": "# Where the server is, and whom to trust. There is nothing to fill in.\n" + tomli_w.dumps(kit),
        "ca.pem": project.authority.read_text(),
        "README.txt": readme,
    }
    templates = {
        "site.toml": _SITE.format(site=site, address=settings.address),
        "policy.toml": Policy(data_set=f"{site}-data", servers=(server.hex,)).to_toml(),
    }
    for name, text in templates.items():
        files[name] = (folder / name).read_text() if (folder / name).exists() else text
    for name, text in files.items():
        write_atomically(folder / name, text)
    archive = project.kits / f"{site}.zip"
    write_atomically(archive, _make_zip(site, files))
    return archive


def format_fingerprint(sha256: str) -> str:
    """Format a fingerprint to compare over the telephone: its first half, in groups of four digits."""
    return "-".join(sha256[start : start + 4] for start in range(0, 32, 4))


def _make_zip(site: str, files: dict[str, str]) -> bytes:
    """Return a zip archive with one folder; the same files give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{site}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return out.getvalue()
