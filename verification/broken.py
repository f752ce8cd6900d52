"""The one exception inside a check: a method does not keep its contract, so nothing that needs it can be compared."""


class Broken(Exception):
    """A method raised, or returned something else than its contract says.

    Attributes:
        method: its name.
        message: what happened and what the method should return.
    """

    def __init__(self, method: str, message: str) -> None:
        super().__init__(message)
        self.method, self.message = method, message


CONTRACTS = {
    "dim": "an int, at least 1: the number of coordinates of a structure",
    "maximize": "take scores [B, D] and return one structure a row, [B, D], in the dtype and on the device of the scores",
    "topk": "take scores [B, D] and k and return (vertices [B, k, D] in the dtype of the scores, valid [B, k] bool)",
    "project": "take scores [B, D] and return the projection [B, D] in their dtype, finite",
    "decompose": "take a mean [B, D] and return (vertices [B, S, D], probs [B, S]) in its dtype",
    "gibbs": "take scores [B, D] and return a distribution with sample, log_prob and entropy",
    "halfspaces": "take nothing and return a Halfspaces of a_ub [M, D], b_ub [M], a_eq [E, D], b_eq [E], float64, on the CPU",
    "vertices": "take nothing and return every structure once, [V, D] float64",
}


def broken(owner: str, method: str, what: str) -> Broken:
    """The exception for `owner.method`, which did `what`."""
    return Broken(method, f"{owner}.{method} {what}; it should {CONTRACTS[method]}")


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def in_words(polytope: object) -> str:
    """Its repr, if it has one."""
    try:
        return repr(polytope)
    except Exception as error:
        return f"<{type(polytope).__name__}, whose __repr__ raised {first_line(error)}>"
