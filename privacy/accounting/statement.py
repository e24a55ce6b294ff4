"""What a run may say of its privacy, in words that stay within what was done."""

NO_GUARANTEE = (
    "No privacy guarantee: this run adds no noise. The server sees each node's update, and updates can reveal "
    "training records, coded or not."
)


def guarantee(epsilon: float, delta: float, unit: str) -> str:
    """The sentence that a run with noise must show beside its figures."""
    return (
        f"Differential privacy: all that leaves a site in the run is private at epsilon {epsilon:.3g} and delta "
        f"{delta:.1g} for each {unit}, added or removed, against the server, other sites and outsiders, as long as the "
        "site's own software and host are honest. Somebody with data at several sites adds their epsilons up."
    )


def client_guarantee(epsilon: float, delta: float) -> str:
    """The sentence that a run whose server adds noise must show beside its figures."""
    return (
        f"Differential privacy of whole nodes: the models of all rounds are private at epsilon {epsilon:.3g} and delta "
        f"{delta:.1g} for all that one node holds, the node added or removed, against whoever sees the models, as long "
        "as the server is honest, which sees each update and adds the noise, and keeps to itself who took part in a "
        "round and what the run's records say. Other runs with the same nodes add up."
    )


NO_GUARANTEE_AGAINST_SERVER = (
    "No privacy guarantee against the server: the sites add no noise, and the server sees each node's update."
)
