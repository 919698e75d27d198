"""The wheel that ``pip install .`` builds, used without the pipeline's engines."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import os, hatchling.build; os.chdir({str(ROOT)!r}); print(hatchling.build.build_wheel({str(folder)!r}))"
    name = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True).stdout.split()[-1]
    return folder / name


def test_the_wheel_is_typed_and_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "fvq/py.typed" in names
    assert {f"fvq/study/page/{name}" for name in ("page.html.j2", "style.css", "script.js")} < set(names)
    assert "fvq/study/paper_tables.yaml" in names
    assert {name.split("/")[0] for name in names} == {"fvq", "fvq-0.1.0.dist-info"}


def test_the_library_imports_without_dvc_and_snakemake(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = f"""if True:
        import importlib, pathlib, sys
        sys.path.insert(0, {str(tmp_path)!r})
        for engine in ("dvc", "snakemake", "hydra"):
            sys.modules[engine] = None  # an import of it fails
        import fvq
        root = pathlib.Path(fvq.__file__).parent
        assert root.parent == pathlib.Path({str(tmp_path)!r}), root
        for path in sorted(root.rglob("*.py")):
            if path.name != "__main__.py":
                importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
        import torch
        from fvq.quantize import VQBridge, build_quantizer, nearest_code
        quantizer = build_quantizer("fvq", codebook_size=1024, code_dim=32)
        out = quantizer(torch.randn(1, 32, 4, 4))
        assert torch.equal(quantizer.freeze()(torch.zeros(1, 32, 1, 1)).indices, torch.zeros(1, 1, 1).long())
        assert nearest_code(torch.randn(5, 32), quantizer.mapped_codebook()).shape == (5,)
        assert VQBridge(1024, 32)(quantizer.codebook).shape == (1024, 32)
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
