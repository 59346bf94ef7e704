"""The documentation's commands parse or run, its Python is valid, and what it points to exists."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import search_spaces
from tests.orchestrator.data.archive_files import SAMPLES
from tests.orchestrator.sweeps import parse_args
from trainables.metrics import METRIC_NAMES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *DOCS.rglob("*.md")]
)
PHOTOS, CIFAR = "tiny-imagenet-200-sample.zip", "cifar-10-python-sample.tar.gz"
# Programs that are not ours, and the shell's own.
OTHERS = {"pip", "ray", "mlflow", "curl", "mkdir", "mv", ".", "export"}


def text_of(page: Path) -> str:
    return page.read_text()


def commands(page: Path, module: str = "") -> list[list[str]]:
    """Return the commands in a page's shell blocks, those of one of our modules or all."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text_of(page), re.DOTALL):
        for line in block.splitlines():
            for part in line.split(" && ") if "'" not in line else [line]:
                words = shlex.split(part, comments=True)
                if words and (not module or words[1:3] == ["-m", module]):
                    found.append(words)
    return found


def of_all_pages(module: str) -> Iterator[list[str]]:
    for page in PAGES:
        yield from (words[3:] for words in commands(page, module))
        # Those that a cluster's head runs, and in tables.
        for line in re.findall(rf"python -m {re.escape(module)} ([^'`\n|&]*)['`]", text_of(page)):
            if "..." not in line and not line.startswith("["):
                yield shlex.split(line.partition(" 2>")[0])


def test_every_sweep_command_parses() -> None:
    spaces = [parse_args(words).space for words in of_all_pages("orchestrator.sweep")]
    assert len(spaces) >= 30
    assert {space for space in spaces if not space.endswith(".py")} - {"try"} <= set(
        search_spaces.names()
    )


@pytest.mark.parametrize("name", ["report", "predict", "data"])
def test_every_report_predict_and_data_command_parses(name: str) -> None:
    found = list(of_all_pages(f"orchestrator.{name}"))
    assert len(found) >= {"report": 3, "predict": 4, "data": 6}[name]
    parser = importlib.import_module(f"orchestrator.{name}.__main__")._parser()
    for words in found:
        assert parser.parse_args(words) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_other_command_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets
        elif words[0] in ("python", ".venv/bin/python") and words[1] == "-m":
            assert words[2] == "pytest" or importlib.util.find_spec(words[2])
        elif words[0] == "python":
            assert f'title="{words[1]}"' in text_of(page)
        else:
            assert words[0] in OTHERS or (ROOT / words[0]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_valid(page: Path, tmp_path: Path) -> None:
    for code in re.findall(r"```python[^\n]*\n(.*?)```", text_of(page), re.DOTALL):
        compile(code, str(page), "exec")
        if "SPACE = " in code:
            path = tmp_path / "mine.py"
            path.write_text(code)
            assert search_spaces.load(str(path)).name in ("mine", "photos")


def test_every_link_and_path_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", text_of(page)):
            assert target.startswith("https://") or (page.parent / target).is_file(), target
        paths = r"`((?:orchestrator|trainables|search_spaces|tests|benchmarks|docs)/[^` ]*)`"
        for path in re.findall(paths, text_of(page)):
            assert (ROOT / path).exists() or "*" in path, path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 900


def test_every_metric_is_explained() -> None:
    page = text_of(DOCS / "reference/metrics.md")
    assert [name for name in METRIC_NAMES if f"`{name}`" not in page] == []


def test_every_section_of_the_report_is_explained(tmp_path: Path) -> None:
    from orchestrator.ledger.ledger import open_ledger
    from orchestrator.report.render import write_report

    shutil.copy(ROOT / "tests/golden/ledgers/final_seeds.sqlite", tmp_path / "ledger.sqlite")
    ledger = open_ledger(tmp_path / "ledger.sqlite")
    write_report(ledger, tmp_path / "report")
    ledger.close()
    report = (tmp_path / "report/report.md").read_text()
    sections = re.findall(r"^## (.*)$", report, re.MULTILINE)
    page = text_of(DOCS / "how-to/report.md")
    assert sections
    assert [name for name in sections if f"| {name} |" not in page] == []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the documentation's generator is not installed")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        check=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*https?://[^>]*>", page.read_text())
        assert loaded == [], page


def test_reference_pages_are_complete(site: Path) -> None:
    from orchestrator.sweep.arguments import _parser
    from search_spaces.space import SearchSpace
    from trainables.config import field_names
    from trainables.models.build import VARIANTS

    def shown(page: str) -> str:
        return (site / "reference" / page).read_text()

    flags = {flag for action in _parser()._actions for flag in action.option_strings}
    assert [flag for flag in flags - {"-h", "--help"} if flag not in shown("commands.html")] == []
    for names, page in (
        (field_names(), "hyperparameters.html"),
        (tuple(SearchSpace.__slots__), "spaces.html"),
        (VARIANTS, "variants.html"),
    ):
        assert [name for name in names if f"<code>{name}</code>" not in shown(page)] == []
    studies = (site / "how-to/studies.html").read_text()
    assert [name for name in search_spaces.names() if f"<code>{name}</code>" not in studies] == []
    assert "generate:" not in "".join(page.read_text() for page in site.rglob("*.html"))


def error_of(folder: Path, words: list[str]) -> str:
    """Run a command and return it with its output if it fails, else nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("MLFLOW_TRACKING_URI", "SWEEP_STORAGE", "SWEEP_DATA_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return f"{shlex.join(words)}\n{done.stdout}{done.stderr}" if done.returncode else ""


def shortened(words: list[str], folder: Path) -> list[str]:
    """Return a sweep's command with as little training as possible; without its data, its plan."""
    space = parse_args(words[3:]).space
    variant = "cnn3_bn" if space.endswith("mine.py") else "cnn3"
    short = ["--trials", "1", "--epochs", "1", "--variants", variant]
    if not {"--verify", "--dry-run"} & set(words):
        short += ["--final-seeds", "1"]
    has_data = space in ("digits", "./photos.py", "try") or "photos" in words
    if not has_data and not (folder / "data/cifar10").is_dir():
        return [*words, "--dry-run"]
    return [*words, *short]


def first_error_of(page: Path, folder: Path) -> str:
    """Run a page's Python commands in their order, in a folder with photos and an archive."""
    python = r'```python title="(.*?)"\n(.*?)```'
    for title, code in re.findall(python, text_of(page), re.DOTALL):
        (folder / title).write_text(code)
    for words in commands(page):
        if words[0] in ("mkdir", "mv"):
            subprocess.run(words, check=True, cwd=folder)
        if words[0] != "python" or {"tinyimagenet", "cluster.yaml"} & set(words[3:5]):
            continue  # a download; a cluster
        if any("://" in word for word in words):
            continue  # a server or a bucket
        if words[-1].endswith("/*.jpg"):
            words[-1:] = [str(path) for path in sorted(folder.glob(words[-1]))]
        is_sweep = words[2:3] == ["orchestrator.sweep"]
        if error := error_of(folder, shortened(words, folder) if is_sweep else words):
            return error
    return ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a new image and, where the sample is there, photos and an archive."""
    from PIL import Image

    Image.new("L", (20, 20), 128).save(tmp_path / "digit.png")
    (tmp_path / "data").mkdir()
    return tmp_path


def add_photos(folder: Path, *, classes: int) -> None:
    if not (SAMPLES / PHOTOS).is_file():
        pytest.skip(f"no {PHOTOS} in {SAMPLES}")
    shutil.copy(SAMPLES / PHOTOS, folder / "data/tiny-imagenet-200.zip")
    with zipfile.ZipFile(SAMPLES / PHOTOS) as archive:
        names = [name for name in archive.namelist() if "/train/" in name and name.endswith("JPEG")]
        for name in names[: 60 * classes]:
            photo = folder / "my/photos" / name.split("/")[2] / Path(name).name
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(archive.read(name))
    shutil.copy(photo, folder / "my/new.jpg")


def add_cifar(folder: Path) -> None:
    if not (SAMPLES / CIFAR).is_file():
        pytest.skip(f"no {CIFAR} in {SAMPLES}")
    shutil.copy(SAMPLES / CIFAR, folder / "cifar-10-python.tar.gz")


@pytest.mark.ray
@pytest.mark.parametrize("name", ["tutorial/first-sweep.md", "how-to/studies.md"])
def test_commands_on_digits_run(name: str, folder: Path) -> None:
    assert first_error_of(DOCS / name, folder) == ""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a short sweep of digits."""
    folder = tmp_path_factory.mktemp("digits")
    words = shortened(["python", "-m", "orchestrator.sweep", "digits"], folder)
    assert error_of(folder, words) == ""
    return folder / "results"


@pytest.mark.ray
@pytest.mark.parametrize("name", ["resume", "budget", "report", "predict", "storage"])
def test_commands_on_a_sweep_of_digits_run(name: str, digits: Path, folder: Path) -> None:
    shutil.copytree(digits, folder / "results")
    assert first_error_of(DOCS / f"how-to/{name}.md", folder) == ""


@pytest.mark.ray
@pytest.mark.parametrize("name", ["own-space", "own-model"])
def test_plans_of_own_spaces_and_models_are_printed(name: str, folder: Path) -> None:
    assert first_error_of(DOCS / f"how-to/{name}.md", folder) == ""


@pytest.mark.ray
def test_the_tutorial_on_own_photos_runs(folder: Path) -> None:
    add_photos(folder, classes=1)
    assert first_error_of(DOCS / "tutorial/own-photos.md", folder) == ""
    assert (folder / "results/photos/report/report.html").is_file()


@pytest.mark.ray
def test_commands_that_prepare_datasets_run(folder: Path) -> None:
    add_photos(folder, classes=10)  # more images than the largest batch of the space
    add_cifar(folder)
    assert first_error_of(DOCS / "how-to/datasets.md", folder) == ""


@pytest.mark.ray
def test_the_readme_runs(folder: Path) -> None:
    add_photos(folder, classes=10)
    add_cifar(folder)
    (code,) = re.findall(r"```python\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    (folder / "mine.py").write_text(code)
    prepare = "python -m orchestrator.data prepare cifar10 --source cifar-10-python.tar.gz"
    assert error_of(folder, shlex.split(prepare)) == ""
    assert first_error_of(ROOT / "README.md", folder) == ""
