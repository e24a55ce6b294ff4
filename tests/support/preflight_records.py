"""A site whose records are looked at before its node starts."""

from fedglm.client.preflight.checks import preflight

PERSON = "Anna Musterfrau"
DATA = {
    "source": "records.csv",
    "text_field": "note",
    "label_field": "ill",
    "class_names": ["0", "1"],
    "unit_field": "patient",
}


def write_records(site, text=None):
    lines = [f"p{i // 2},{PERSON} {i},{i % 2},{i}" for i in range(40)]
    text = text or "\n".join(["patient,note,ill,age", *lines, ""])
    (site.folder / "records.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def look(site, check, *, timeout_s=5.0):
    """The findings of one check."""
    found = [finding for finding in preflight(site.folder, timeout_s=timeout_s) if finding.check == check]
    for finding in found:
        assert "\n" not in finding.detail + finding.remedy
        assert PERSON not in finding.detail + finding.remedy
        assert (finding.remedy == "") == (finding.level == "ok")
    return found


def one(site, check, **options):
    (finding,) = look(site, check, **options)
    return finding
