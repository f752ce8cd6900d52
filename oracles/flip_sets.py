"""Which flips of bits can lead to one of the k best bit vectors, whatever the scores."""

from functools import lru_cache
from itertools import accumulate


@lru_cache(maxsize=64)
def flip_sets(k: int, width: int) -> tuple[tuple[int, ...], ...]:
    """The sets of bits, numbered 1 ... width by increasing |t|, whose flip can lead to one of the k best; each largest first.

    To flip the set F in the best bit vector costs sum_{i in F} |t_i|. Whatever the scores, F costs at least as much as every
    set that has, largest first, no larger numbers; so F is among the k best only if at most k sets (itself included) are below
    it in this order. Those are few: 17 for k = 10 and 474 for k = 100. They are ordered by the sum of their numbers, the empty
    set first, so that a set without its largest or its smallest number comes before it.
    """
    frontier: list[tuple[int, ...]] = [()]
    found = set(frontier)
    while frontier:
        grown = {bigger for flips in frontier for bigger in _covers(flips, width)} - found
        frontier = [flips for flips in sorted(grown) if _sets_below(flips, k) <= k]
        found.update(frontier)
    return tuple(sorted(found, key=lambda flips: (sum(flips), flips)))


def _covers(flips: tuple[int, ...], width: int) -> list[tuple[int, ...]]:
    """The sets one step above: one number raised by one, or the number 1 added. Sets are written largest first."""
    raised = [
        (*flips[:place], bit + 1, *flips[place + 1 :])
        for place, bit in enumerate(flips)
        if bit < width and (place == 0 or bit + 1 < flips[place - 1])
    ]
    added = [(*flips, 1)] if width and (not flips or flips[-1] > 1) else []
    return raised + added


def _sets_below(flips: tuple[int, ...], limit: int) -> int:
    """How many sets g_1 > g_2 > ... (no longer than flips) have every g_j <= flips_j; at least limit + 1 if more."""
    if not flips:
        return 1
    # ways[x] = choices for the places after j whose numbers are all below x, the empty choice included
    ways = [1] * (flips[0] + 2)
    for bit in reversed(flips):
        allowed = [0, *ways[1 : bit + 1], *[0] * (len(ways) - bit - 1)]
        ways = [min(1 + before, limit + 1) for before in accumulate(allowed, initial=0)][:-1]
    return ways[-1]
