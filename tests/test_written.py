"""Structures written down and read. Truth is enumeration: all that a polytope has, and nothing else."""

from itertools import pairwise, permutations, product

import pytest
import torch
from sparsemarg.layers.functional import sparsemap, sparsemap_loss
from sparsemarg.oracles import Arborescence, LinearChain, Matching, Polytope, ProjectiveTree, Segmentation, ShortestPath, topk
from torch import Tensor

TREES = [
    kind(words, single_root=single) for kind in (ProjectiveTree, Arborescence) for words in (1, 4) for single in (False, True)
]


def every(polytope: Polytope, lengths: Tensor, kept: int = 400) -> Tensor:
    """Structures of these lengths: the best ones by random scores."""
    scores = torch.rand(len(lengths), polytope.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, valid = topk(polytope, polytope.mask(scores, lengths), kept)  # pyright: ignore[reportAttributeAccessIssue]
    assert not valid[:, -1].any(), "there are more"
    return found[valid]


@pytest.mark.parametrize("polytope", TREES, ids=repr)
def test_trees(polytope: ProjectiveTree | Arborescence) -> None:
    """Of all numbers that could be heads just those of trees are taken, and each is read as it was written."""
    n = polytope.words
    there = every(polytope, torch.arange(1, n + 1))
    taken = []
    for length in range(1, n + 1):
        for heads in product(range(length + 1), repeat=length):
            written = torch.tensor([*heads, *[-1] * (n - length)])
            try:
                structure = polytope.structures(written, dtype=torch.float64)
            except ValueError:
                continue
            assert torch.equal(polytope.heads(structure), written)
            taken.append(structure)
    assert sorted(map(tuple, torch.stack(taken).tolist())) == sorted(map(tuple, there.tolist()))


@pytest.mark.parametrize(
    "polytope", [LinearChain(3, 2), LinearChain(1, 3), Segmentation(4, 2, 2), Segmentation(4, 1, 3)], ids=repr
)
def test_sequences(polytope: LinearChain | Segmentation) -> None:
    structures = every(polytope, torch.arange(1, polytope.length + 1))
    if isinstance(polytope, LinearChain):
        tags = polytope.tags(structures)
        again = polytope.structures(tags, dtype=torch.float64)
        assert len(structures) == sum(polytope.states**length for length in range(1, polytope.length + 1))
    else:
        tags, starts = polytope.segments(structures)
        again = polytope.structures(tags, starts, dtype=torch.float64)
        assert starts[:, 0].all()
        # Labels and starts of every structure, written by hand.
        for structure, labels, start in zip(structures, tags.tolist(), starts.tolist(), strict=True):
            wanted, begun = [-1] * polytope.length, [False] * polytope.length
            for place, width, label in polytope.cells(structure).nonzero().tolist():
                wanted[place : place + width + 1], begun[place] = [label] * (width + 1), True
            assert (labels, start) == (wanted, begun)
        assert len(structures) == sum(segmentations(polytope, length) for length in range(1, polytope.length + 1))
    assert torch.equal(again, structures)


def segmentations(polytope: Segmentation, length: int) -> int:
    """How many there are of a length: of each first segment, as many as of the rest."""
    if length == 0:
        return 1
    return sum(polytope.labels * segmentations(polytope, length - w) for w in range(1, min(polytope.width, length) + 1))


@pytest.mark.parametrize(
    "polytope",
    [ShortestPath.grid(3, 4, diagonal=True), ShortestPath([(5, 9), (0, 5), (0, 9), (7, 0), (3, 2)], 0, 9)],
    ids=["grid", "arcs on no path"],
)
def test_paths(polytope: ShortestPath) -> None:
    """Every sequence of nodes that follows arcs from source to target, found by walking, and no other."""
    ways, waiting = [], [[polytope.source]]
    while waiting:
        way = waiting.pop()
        if way[-1] == polytope.target:
            ways.append(way)
        else:
            waiting += [[*way, head] for tail, head in polytope.arcs if tail == way[-1]]
    longest = max(map(len, ways))
    written = torch.tensor([[*way, *[-1] * (longest - len(way))] for way in ways])
    structures = polytope.structures(written, dtype=torch.float64)
    assert sorted(map(tuple, structures.tolist())) == sorted(map(tuple, polytope.vertices().tolist()))
    for structure, way in zip(structures, ways, strict=True):
        passed = {polytope.arcs[place] for place in structure.nonzero()[:, 0].tolist()}
        assert passed == set(pairwise(way))
    assert torch.equal(polytope.nodes(structures), written)
    padded = torch.nn.functional.pad(written, (0, 3), value=-1)
    assert torch.equal(polytope.structures(padded[None], dtype=torch.float64), structures[None])


def test_a_long_path() -> None:
    line = ShortestPath([(place, place + 1) for place in range(1500)])
    assert torch.equal(line.nodes(torch.ones(line.dim)), torch.arange(1501))
    assert line.structures(torch.arange(1501)).all()


@pytest.mark.parametrize("polytope", [Matching(3), Matching(2, 4)], ids=repr)
def test_assignments(polytope: Matching) -> None:
    """Of all numbers those that differ; of smaller problems, what `mask` leaves to be chosen."""
    taken, wanted = [], list(permutations(range(polytope.columns), polytope.rows))
    for columns in product(range(polytope.columns), repeat=polytope.rows):
        try:
            taken.append((columns, polytope.structures(torch.tensor(columns), dtype=torch.float64)))
        except ValueError:
            continue
    assert [columns for columns, _ in taken] == wanted
    structures = torch.stack([structure for _, structure in taken])
    assert polytope.assigned(structures).tolist() == [list(columns) for columns in wanted]
    assert polytope.table(structures)[5].nonzero().tolist() == [[row, column] for row, column in enumerate(wanted[5])]
    rows, columns = torch.tensor([1, polytope.rows - 1, polytope.rows]), torch.tensor([1, 2, polytope.columns])
    for given in (None, columns):
        scores = torch.rand(3, polytope.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        best = polytope.maximize(polytope.mask(scores, rows, given))
        assert torch.equal(polytope.structures(polytope.assigned(best), rows, given, torch.float64), best)


def test_lengths_say_what_is_padding() -> None:
    """Whatever it is padded with; and the loss of such targets is finite and, at the best structure, that of the best."""
    lengths = torch.tensor([2, 4, 1])
    tree, heads = ProjectiveTree(4), torch.tensor([[2, 0, 0, 0], [0, 1, 2, 3], [0, 7, -3, 9]])
    gold = tree.structures(heads, lengths)
    assert tree.heads(gold).tolist() == [[2, 0, -1, -1], [0, 1, 2, 3], [0, -1, -1, -1]]
    scores = tree.mask(torch.randn(3, tree.dim, generator=torch.Generator().manual_seed(0)), lengths)
    assert sparsemap_loss(scores, gold, tree).isfinite().all()
    chain = LinearChain(4, 3)
    assert chain.tags(chain.structures(torch.zeros(3, 4, dtype=torch.int64), lengths)).tolist() == [
        [0, 0, -1, -1],
        [0, 0, 0, 0],
        [0, -1, -1, -1],
    ]
    best = chain.maximize(chain.mask(torch.randn(3, chain.dim, generator=torch.Generator().manual_seed(0)), lengths))
    assert torch.equal(chain.structures(chain.tags(best)), best)
    segments = Segmentation(4, 2, 2)
    labels, starts = torch.tensor([[1, 1, 0, 0]] * 3), torch.tensor([[True, False, True, True]] * 3)
    read, begun = segments.segments(segments.structures(labels, starts, lengths))
    assert read.tolist() == [[1, 1, -1, -1], [1, 1, 0, 0], [1, -1, -1, -1]]
    assert begun.tolist() == [[True, False, False, False], [True, False, True, True], [True, False, False, False]]


@pytest.mark.parametrize("polytope", [ProjectiveTree(4), Arborescence(4), LinearChain(4, 3), Segmentation(4, 2, 2)], ids=repr)
def test_a_mask_says_lengths(polytope: ProjectiveTree | Arborescence | LinearChain | Segmentation) -> None:
    """For scores and for targets, in any batch dimensions."""
    lengths = torch.tensor([[2, 4, 1]])
    mask = torch.arange(4) < lengths[..., None]
    scores = torch.randn(1, 3, polytope.dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(polytope.mask(scores, mask), polytope.mask(scores, lengths))
    if isinstance(polytope, Segmentation):
        written = (torch.zeros(1, 3, 4, dtype=torch.int64), torch.ones(1, 3, 4, dtype=torch.bool))
    else:
        written = (torch.zeros(1, 3, 4, dtype=torch.int64),)  # all words are at the root, or all positions in state 0
    assert torch.equal(polytope.structures(*written, mask), polytope.structures(*written, lengths))
    for wrong, message in (
        (
            torch.tensor([[[True] * 4, [False, True, True, True], [True, False, False, False]]]),
            r"position 0 of problem \(0, 1\)",
        ),
        (torch.tensor([[[True, False, True, False]] * 3]), r"position 1 of problem \(0, 0\) and true after it"),
        (mask & False, r"that of problem \(0, 0\) is 0"),
        (mask[..., :3], r"lengths as a mask must be \[1, 3, 4\], true where something is, not \[1, 3, 3\]"),
        (mask[0, :2], r"must be \[1, 3, 4\], .* not \[2, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            polytope.mask(scores, wrong)


def test_one_by_itself_and_many_dimensions() -> None:
    tree = Arborescence(3)
    one = tree.structures(torch.tensor([0, 1, 1], dtype=torch.int32))
    assert one.dtype == torch.get_default_dtype()
    assert torch.equal(tree.structures(torch.tensor([[[0, 1, 1]], [[0, 1, 1]]])), one.expand(2, 1, -1))


PATHS = ShortestPath([(0, 5), (5, 9), (0, 9), (7, 0)], 0, 9)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: Arborescence(3).structures(torch.tensor([[0, 1]])), r"a tensor of ints \[\*B, 3\].*not \[1, 2\] torch.int64"),
        (lambda: Arborescence(3).structures(torch.zeros(1, 3)), r"not \[1, 3\] torch.float32"),
        (lambda: Arborescence(3).structures([[0, 1, 1]]), "not list"),  # pyright: ignore[reportArgumentType]
        (
            lambda: Arborescence(3).structures(torch.tensor([[0, 1, 4]])),
            "number 4 at position 2 of problem 0: it must be",
        ),
        (lambda: Arborescence(3).structures(torch.tensor([[0, 1, 1], [0, 3, -1]])), "position 1 of problem 1: .* no such word"),
        (lambda: Arborescence(3).structures(torch.tensor([[0, 2, 1]])), "number 2 at position 1 .*the word itself"),
        (lambda: Arborescence(3).structures(torch.tensor([2, 1, 0])), "number 2 at position 0: .* never ends at the root"),
        (
            lambda: Arborescence(3, single_root=True).structures(torch.tensor([0, 0, 1])),
            "another word is at the root",
        ),
        (lambda: ProjectiveTree(4).structures(torch.tensor([3, 4, 0, 3])), "crosses another"),
        (lambda: ProjectiveTree(3).structures(torch.tensor([0, -1, 1])), "it comes after a -1"),
        (lambda: ProjectiveTree(2).structures(torch.tensor([-1, -1])), "no position at all"),
        (lambda: ProjectiveTree(2).structures(torch.tensor([[0, 1]]), torch.tensor([3])), "lengths must be between 1 and 2"),
        (lambda: LinearChain(2, 3).structures(torch.tensor([0, 3])), "must be between 0 and 2"),
        (
            lambda: Segmentation(3, 2, 2).structures(torch.tensor([0, 1, 1]), torch.tensor([True, False, True])),
            "number 1 at position 1: the segment that it is in has another label",
        ),
        (
            lambda: Segmentation(3, 2, 2).structures(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)),
            "position 2: the segment that it is in has more than 2 positions",
        ),
        (lambda: Segmentation(3, 2).structures(torch.tensor([0, 1, 1]), torch.ones(3)), r"takes starts \[3\] bool"),
        (lambda: Segmentation(2).structures(torch.tensor([0, 0]), [True, True]), "not list"),  # pyright: ignore
        (
            lambda: LinearChain(2, 3).structures(torch.tensor([0, 1]), torch.tensor([2])),
            r"a length for each .*\[\], not \[1\]",
        ),
        (
            lambda: PATHS.structures(torch.tensor([[0, 5, 9], [0, 9, 5]])),
            "number 5 at position 2 of problem 1: no path has an arc",
        ),
        (lambda: PATHS.structures(torch.tensor([[5, 9]])), "number 5 at position 0 of problem 0: paths begin at the source, 0"),
        (lambda: PATHS.structures(torch.tensor([[0, 5]])), "number 5 at position 1 of problem 0: paths end at the target, 9"),
        (lambda: PATHS.structures(torch.tensor([0, 7, 9])), "number 7 at position 1: no path has"),
        (lambda: PATHS.structures(torch.tensor(0)), r"takes a tensor of ints \[\*B, L\], a number for each position, not \[\]"),
        (lambda: PATHS.nodes(torch.zeros(2, 5)), r"reads structures \[\*B, 4\], not \[2, 5\]"),
        (lambda: Matching(3).structures(torch.tensor([0, 2, 0])), "number 0 at position 2: a row before has the same"),
        (lambda: Matching(2, 4).structures(torch.tensor([3, -1])), "number 3 at position 0: the problem has fewer columns"),
        (
            lambda: Matching(3, 4).structures(torch.tensor([[0, 1, -1]]), columns=torch.tensor([9])),
            "have at least 1 row, at most 4",
        ),
        (
            lambda: Matching(3, 4).structures(torch.tensor([[0, 1, -1]]), columns=torch.tensor([4])),
            "problem 0 has 2 rows and 4 columns",
        ),
        (
            lambda: Matching(3).structures(torch.tensor([0, 1, 2]), columns=[3]),
            r"columns must be a tensor of ints \[\], not list",
        ),  # pyright: ignore
        (lambda: Matching(3).structures(torch.tensor([0, 1, 2]), columns=torch.tensor(3.0)), r"not \[\] torch.float32"),
        (lambda: Matching(2).structures(torch.tensor([0, 2])), "must be between 0 and 1"),
        (lambda: Matching(2).assigned(torch.zeros(2, 5)), r"reads structures \[\*B, 4\], not \[2, 5\]"),
        (lambda: LinearChain(2, 3).tags(torch.zeros(2, 5)), r"reads structures \[\*B, 15\], not \[2, 5\]"),
        (lambda: Arborescence(3).heads(torch.zeros(2, 5)), r"reads structures \[\*B, 9\], not \[2, 5\]"),
    ],
)
def test_what_is_none_is_refused(write, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write()


def test_means_are_not_read() -> None:
    for polytope, read in (
        (ProjectiveTree(3), "heads"),
        (Arborescence(3), "heads"),
        (LinearChain(3, 2), "tags"),
        (Segmentation(3, 2), "segments"),
        (ShortestPath.grid(2, 2), "nodes"),
        (Matching(2), "assigned"),
    ):
        mean = sparsemap(torch.zeros(1, polytope.dim), polytope).mean()
        with pytest.raises(ValueError, match=rf"{read} reads structures, of 0s and 1s"):
            getattr(polytope, read)(mean)


@pytest.mark.filterwarnings("error")
def test_structures_of_bools_are_read() -> None:
    for polytope, read in ((LinearChain(3, 2), LinearChain.tags), (Matching(3), Matching.assigned)):
        best = polytope.maximize(torch.randn(4, polytope.dim, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(read(polytope, best.bool()), read(polytope, best))  # pyright: ignore[reportArgumentType]
