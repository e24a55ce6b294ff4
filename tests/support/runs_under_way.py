"""A run of real sites under way, as the server writes it down."""

from run_files import run_files

from fedglm.server.deployment.run_log import RunLog


def row(number, **changes):
    return run_files(number, 2)[0][-1] | {"loss": None, "accuracy": None, "wall_s": 2.0} | changes


class Going:
    """A run of ten rounds for sites a and b, written by what the server writes with."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "run.json").write_text('{"federation": {"rounds": 10}}')
        self.log = RunLog(folder)
        self.rows = []
        self.log.resumed([])

    def round(self, *, fault=None):
        """A whole round; b's update is rejected for `fault`."""
        number = len(self.rows) + 1
        self.log.round_started(number, 2)
        self.log.reply_taken(number, "a", None)
        self.log.reply_taken(number, "b", fault)
        self.rows.append(row(number, nodes_accepted=2 - (fault is not None), nodes_rejected=int(fault is not None)))
        self.log.round_done(self.rows)
