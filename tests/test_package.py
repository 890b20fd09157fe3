"""The package as such: what it holds, what importing it costs, which way imports run, how it registers."""

import ast
import configparser
import importlib
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

import llmcluster

ROOT = Path(llmcluster.__file__).parent
NOT_THE_PACKAGE = {"tests", "docs", "build", "dist", "runs", "llmcluster.egg-info"}
HEAVY = (
    "torch",
    "numba",
    "simpy",
    "matplotlib",
    "pyarrow",
    "pydantic",
    "plotly",
    "stable_baselines3",
    "typer",
    "scipy",
)
FORBIDDEN = {
    "simulator": {"envs", "agents", "forecaster", "deploy", "experiments"},
    "forecaster": {"simulator", "envs", "agents", "deploy", "experiments"},
    "envs": {"agents", "deploy", "experiments"},
    "agents": {"deploy", "experiments"},
    "deploy": {"experiments"},
}


def sources() -> list[Path]:
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    return sorted(f for f in files if f.parts[0] not in NOT_THE_PACKAGE and not f.parts[0].startswith("."))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Level and dotted name of everything that a source imports, within functions and for typing too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def target(path: Path, level: int, name: str) -> str:
    """First folder below the package of a relative import."""
    base = [*path.parts[:-1]]
    return [*base[: len(base) - (level - 1)], *name.split(".")][0]


def test_package_list_equals_folders() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = {".".join(["llmcluster", *f.parts[:-1]]) for f in sources() if f.name == "__init__.py"}
    with_sources = {".".join(["llmcluster", *f.parts[:-1]]) for f in sources()}
    assert sorted(listed) == sorted(folders)
    assert folders == with_sources, "a folder with sources lacks __init__.py"


def test_importing_is_cheap() -> None:
    code = f"import sys, llmcluster; print(*(name for name in {HEAVY} if name in sys.modules))"
    assert run_python(code) == ""


def test_public_names_load_when_used() -> None:
    assert {
        name
        for name in llmcluster.__all__
        if getattr(llmcluster, name).__name__ == name or callable(getattr(llmcluster, name))
    } == set(llmcluster.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        llmcluster.Nonsense  # noqa: B018


def test_registration_is_idempotent(recwarn: pytest.WarningsRecorder) -> None:
    before = {name: spec for name, spec in gym.registry.items() if name.startswith("LLMCluster")}
    importlib.reload(llmcluster)
    after = {name: spec for name, spec in gym.registry.items() if name.startswith("LLMCluster")}
    assert set(before) == {"LLMCluster-v0", "LLMClusterSmall-v0"}
    assert all(after[name] is spec for name, spec in before.items())
    assert not recwarn.list


@pytest.mark.parametrize("prefix", ["llmcluster:LLMCluster-v0", "llmcluster:LLMClusterSmall-v0"])
def test_gym_make_imports_the_package_itself(prefix: str) -> None:
    code = f"import gymnasium as gym; env = gym.make({prefix!r}); env.reset(seed=0); print(env.unwrapped.scenario.name)"
    assert run_python(code) == ("small" if "Small" in prefix else "default")


def test_heuristics_need_no_torch() -> None:
    code = (
        "import sys; from llmcluster.agents.registry import make_agent; from llmcluster.agents.base import Task;"
        "from llmcluster import LLMClusterEnv; make_agent('follow-load', Task.of(LLMClusterEnv('small')));"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    assert run_python(code) == "False False"


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_run_one_way_and_are_relative(path: Path) -> None:
    for level, name in imports(path):
        if level == 0:
            assert name.split(".")[0] != "llmcluster", f"{path} imports {name} absolutely"
            continue
        assert level <= len(path.parts), f"{path} reaches out of the package"
        if len(path.parts) > 1:
            assert target(path, level, name) not in FORBIDDEN.get(path.parts[0], set()), f"{path} imports {name}"


def test_the_check_of_imports_can_fail() -> None:
    assert target(Path("envs/codec.py"), 2, "agents.base") == "agents"
    assert target(Path("simulator/workload/formats/azure.py"), 4, "envs") == "envs"
    assert target(Path("simulator/workload/formats/azure.py"), 3, "units") == "simulator"


def test_sources_are_short() -> None:
    lines = {f: len((ROOT / f).read_text(encoding="utf-8").splitlines()) for f in sources()}
    assert [f for f, n in lines.items() if n > 500 and f.parts[:2] != ("simulator", "kernels")] == []
    assert statistics.median(lines.values()) < 180
    assert len(lines) > 50


@pytest.mark.slow
def test_wheel_holds_the_package_and_no_tests(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="building without isolation needs setuptools")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    copy = tmp_path / "checkout"  # setuptools leaves build/ in the folder that it builds
    tracked = [*sources(), *(f.relative_to(ROOT) for f in ROOT.glob("*.*") if f.is_file())]
    parts = ("simulator", "envs", "tests", "forecaster", "deploy", "experiments")
    tracked += [f.relative_to(ROOT) for part in parts for f in (ROOT / part).rglob("*.*")]
    for file in [*tracked, Path("LICENSE")]:
        if (ROOT / file).is_file() and "__pycache__" not in file.parts:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("llmcluster-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {n for n in names if ".dist-info/" not in n}
    tomls = {
        f.relative_to(ROOT) for part in ("simulator", "envs", "experiments") for f in (ROOT / part).rglob("*.toml")
    }
    shipped = [f"forecaster/shipped/gru.{kind}" for kind in ("safetensors", "json")] + ["deploy/rehearsal/stub/nvml.c"]
    expected = {f"llmcluster/{Path(f).as_posix()}" for f in [*sources(), *tomls, *shipped, "py.typed"]}
    assert inside == expected
    assert not any("test" in Path(n).parts[1] for n in inside)
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_reference_page_is_what_the_code_says() -> None:
    from llmcluster.experiments.write_docs import reference_page

    page = Path(llmcluster.__file__).parent / "docs" / "reference.md"
    assert page.read_text() == reference_page(), "run `make docs`"
