"""The length of README.md, and its graph and code."""

from tests.helpers import ROOT, Clone, code_blocks


def test_readme_has_at_most_1500_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


def test_readme_has_the_graph_of_the_stages(shipped: Clone) -> None:
    (graph,) = code_blocks("README.md", "mermaid")
    assert graph in shipped.call("dvc", "dag", "--md")


def test_readme_has_the_code_of_the_docs() -> None:
    """The tests of publishing run the code of the docs."""
    assert code_blocks("README.md", "python") == code_blocks("docs/handing-over.md", "python")
