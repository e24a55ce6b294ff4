"""A ClientApp with one handler for all message types."""

from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable


def make_single_handler_app(handler: ClientAppCallable) -> ClientApp:
    """Make a ClientApp that answers all of the server's messages with one handler.

    Args:
        handler: Answers the first query of a run, a signed tree head (`query.seal`), a light release (`query.light`),
            the final model (`query.model`), training and evaluation, as the type of the message says.
    """
    app = ClientApp()
    for register in (
        app.query(),
        app.query("seal"),
        app.query("light"),
        app.query("model"),
        app.train(),
        app.evaluate(),
    ):
        register(handler)
    return app
