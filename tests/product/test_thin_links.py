"""Hosts of their own, thin and lossy links between them: the run needs longer, and ends with the same bits."""

import pytest
from command_line import soon
from networks import CAN, Link, Network
from real_federation import SERVER, SHORT, SITES, Federation, simulated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not CAN, reason="needs the right to make network namespaces"),
]
THIN = Link(rate=256e3, loss=0.02, delay=0.02)
"""As thin as a hospital's oldest line, and lossy both ways."""


def test_five_hosts_over_thin_and_lossy_links_and_a_cable_that_is_pulled(tmp_path):
    expected = simulated(tmp_path / "calm", *SHORT)["model_sha256"]
    names = [f"site-{number}" for number in range(SITES)]
    with (
        Network([SERVER, *names], THIN) as network,
        Federation(tmp_path / "real", SITES, network=network) as federation,
    ):
        federation.start()
        with federation.run("hospital", "thin", "--no-dp", *SHORT) as process:
            process.until(lambda: len(federation.rounds("thin")) >= 1, 600)
            network.cut("site-1")
            process.until(
                lambda: any(e["event"] == "reply" and e["round"] == 2 for e in federation.events("thin")), 600
            )
            network.mend("site-1")
            result = process.finish(timeout=1800)
        assert result.code == 0, result.err
        assert result.json["model_sha256"] == expected
        rows = federation.rounds("thin")
        assert [row["nodes_accepted"] for row in rows] == [SITES] * len(rows)
        federation.stop()
        assert soon(lambda: federation.processes == set())
