"""The examples in the documentation run."""

import doctest
import html
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    "sparsemarg." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("oracles", "layers", "models")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    # By path: a function that is exported beside its module hides it.
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_some_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 5


def test_the_reference_has_docstrings_as_they_are_written(tmp_path: Path) -> None:
    """Formulas have signs that Markdown and HTML read otherwise."""
    pdoc = pytest.importorskip("pdoc")
    pdoc.render.configure(template_directory=ROOT / "docs")
    pdoc.pdoc("sparsemarg.layers.functional", "sparsemarg.oracles", output_directory=tmp_path)
    for name in ("layers/functional", "oracles"):
        module = importlib.import_module("sparsemarg." + name.replace("/", "."))
        page = re.sub(r"</?a\b[^>]*>", "", (tmp_path / f"sparsemarg/{name}.html").read_text())
        written = re.findall(r'<pre class="docstring">(.*?)</pre>', page, re.S)
        assert not [block for block in written if "<" in block]
        blocks = {html.unescape(block).strip() for block in written}
        missing = [public for public in module.__all__ if inspect.getdoc(getattr(module, public)) not in blocks]
        assert not missing


def test_readme_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out
