"""A ClientApp that answers every kind of message in the same way."""

from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable


def app_of(answer: ClientAppCallable) -> ClientApp:
    """The app.

    Args:
        answer: Answers the server's first query, shows its log, trains for a round, or measures a model, as the
            message's type says.
    """
    app = ClientApp()
    for register in (app.query(), app.query("seal"), app.train(), app.evaluate()):
        register(answer)
    return app
