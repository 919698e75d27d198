"""The guides' code runs as it is printed, block after block."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["your-own-tokenizer.md", "generator.md", "evaluation.md"])
def test_the_code_of_a_guide_runs(name, monkeypatch, tmp_path):
    page = DOCS / name
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python")
    assert len(blocks) > 1
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for block in blocks:
        # Empty lines in front give tracebacks the page's line numbers.
        before = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(before + block[1], str(page), "exec"), names)
