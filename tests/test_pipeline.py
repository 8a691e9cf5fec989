"""dvc.yaml, params.yaml and the code agree; each check is also tested on planted faults."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from typing import Any

import pytest
from pydantic import BaseModel

from stages.lib.params import ModelParams, Params
from tests.helpers import ROOT, STAGES, outs, read_yaml

BUILT_IN = {"simple"}  # templates of DVC itself that dvc.yaml may name


@dataclass
class Tree:
    """Input of the checks: files as parsed or as text, so that a test can plant a fault."""

    dvc: Any
    params: Any
    modules: dict[str, str]  # source of stages/ by dotted name, without __init__
    tools: dict[str, str]  # the same of tools/
    templates: set[str]
    tests: set[str]

    def stages(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Name, entry of dvc.yaml and source of each stage."""
        for name, entry in self.dvc["stages"].items():
            yield name, entry, self.modules[f"stages.{name}"]


@pytest.fixture
def tree() -> Tree:
    return Tree(
        dvc=read_yaml(ROOT / "dvc.yaml"),
        params=read_yaml(ROOT / "params.yaml"),
        modules=sources("stages"),
        tools=sources("tools"),
        templates={path.stem for path in (ROOT / ".dvc/plots").glob("*.json")},
        tests={path.stem for path in (ROOT / "tests").glob("test_*.py")},
    )


def sources(folder: str) -> dict[str, str]:
    """The source of each module in a folder by its dotted name, without __init__."""
    paths = (path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in paths
    }


def differences(where: str, expected: Iterable[str], found: Iterable[str]) -> list[str]:
    expected, found = set(expected), set(found)
    return [f"{where}: {name} is missing" for name in sorted(expected - found)] + [
        f"{where}: {name} is too many" for name in sorted(found - expected)
    ]


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except the bodies of `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from executed(node)


def imports(name: str, source: str) -> set[str]:
    """Dotted names that a module imports, or runs by a literal name (`python -m`)."""
    names: set[str] = set()
    for node in executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), name.rpartition(".")[0])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"stages(\.\w+)+", str(node.value)):
            names.add(str(node.value))
    return names


def reached(modules: dict[str, str], name: str) -> set[str]:
    """The project's modules that a module imports, directly or through another, and itself."""
    seen, left = set(), {name}
    while left:
        seen.add(module := left.pop())
        left |= (imports(module, modules[module]) & set(modules)) - seen
    return seen


def constants(source: str) -> dict[str, str]:
    """The UPPER constants of a module that are `Path("...")`."""
    return {
        target.id: str(node.value.args[0].value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and called(node.value) == "Path"
        and isinstance(node.value.args[0], ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper()
    }


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def called(node: ast.AST) -> str:
    """Return the name of the called function without its module, or '' for other nodes."""
    function = getattr(node, "func", None)
    return str(getattr(function, "id", getattr(function, "attr", "")))


def written(source: str) -> set[str]:
    """Names in the first argument of `replacing` and `write_...`, possibly as `name / file`."""
    calls = (
        node for node in ast.walk(ast.parse(source)) if re.match("replacing$|write_", called(node))
    )
    return {name for call in calls if isinstance(call, ast.Call) for name in names_in(call.args[0])}


def sections(source: str) -> set[str]:
    """Sections of params.yaml that a module reads: attributes of `read_params()` or its alias."""
    found: set[str] = set()
    for function in ast.parse(source).body:
        nodes = list(ast.walk(function))
        calls = [node for node in nodes if called(node) == "read_params"]
        named = [node for node in nodes if isinstance(node, ast.Assign) and node.value in calls]
        names = {
            target.id for node in named for target in node.targets if isinstance(target, ast.Name)
        }
        whole = calls + [
            n
            for n in nodes
            if isinstance(n, ast.Name) and n.id in names and isinstance(n.ctx, ast.Load)
        ]
        attributes = [
            node for node in nodes if isinstance(node, ast.Attribute) and node.value in whole
        ]
        found |= {attribute.attr for attribute in attributes}
        if set(whole) - {node.value for node in attributes} - {node.value for node in named}:
            found.add(
                "all of params.yaml"
            )  # passed on as a whole, so that the sections read are unknown
    return found


def leaves(content: dict[str, Any], *prefix: str) -> set[str]:
    """Dotted keys of a YAML mapping that are no mapping themselves."""
    found: set[str] = set()
    for key, value in content.items():
        found |= (
            leaves(value, *prefix, key) if isinstance(value, dict) else {".".join((*prefix, key))}
        )
    return found


def fields(kind: type[BaseModel], *prefix: str) -> set[str]:
    """Dotted keys of a schema."""
    found: set[str] = set()
    for key, field in kind.model_fields.items():
        inner: Any = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= fields(inner, *prefix, key)
        else:
            found.add(".".join((*prefix, key)))
    return found


def stage_faults(tree: Tree) -> list[str]:
    names = list(tree.dvc["stages"])
    faults = differences(
        "dvc.yaml", [name.split(".")[1] for name in tree.modules if name.count(".") == 1], names
    )
    faults += [] if names == STAGES else [f"dvc.yaml: stages in the order {', '.join(names)}"]
    made: set[str] = set()
    for name, entry in tree.dvc["stages"].items():
        if entry["cmd"] != f"sh stages/run.sh {name}":
            faults.append(f"{name}: cmd is {entry['cmd']}")
        data = [dep for dep in entry["deps"] if dep.startswith(("data/", "reports/"))]
        faults += [
            f"{name}: {dep} is no whole output of an earlier stage"
            for dep in data
            if dep not in made
        ]
        made |= set(outs(entry))
    return faults


def code_faults(tree: Tree) -> list[str]:
    faults = []
    for name, entry, _ in tree.stages():
        code = [
            module.replace(".", "/") + ".py" for module in reached(tree.modules, f"stages.{name}")
        ]
        faults += differences(
            name, code, [dep for dep in entry["deps"] if dep.startswith("stages/")]
        )
    return faults


def data_faults(tree: Tree) -> list[str]:
    faults = []
    for name, entry, source in tree.stages():
        modules = imports(f"stages.{name}", source) & set(tree.modules)
        paths = {n: p for module in modules for n, p in constants(tree.modules[module]).items()}
        paths |= constants(source)
        loaded, out = names_in(ast.parse(source)), written(source)
        data = [dep for dep in entry["deps"] if not dep.startswith("stages/")]
        data = [dep.removesuffix("/${dataset}.yaml") for dep in data]
        faults += differences(
            f"{name} deps", [p for n, p in paths.items() if n in loaded - out], data
        )
        faults += differences(
            f"{name} outs", [p for n, p in paths.items() if n in out], outs(entry)
        )
    for name, source in tree.modules.items():
        texts = (
            str(node.value)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant)
        )
        named = {text for text in texts if re.match(r"(data|reports)(/\S*)?$", text)}
        faults += [
            f"{name}: {text} is no constant"
            for text in sorted(named - set(constants(source).values()))
        ]
    return faults


def params_faults(tree: Tree) -> list[str]:
    faults = []
    for name, entry, _ in tree.stages():
        read = {
            section
            for module in reached(tree.modules, f"stages.{name}")
            for section in sections(tree.modules[module])
        }
        if "model" in read:
            read = read - {"model"} | {"model.kind", "model.${model.kind}"}
        listed: set[str] = set()
        for item in entry.get("params", []):
            listed |= (
                {f"{file}:{key}" for file, keys in item.items() for key in keys}
                if isinstance(item, dict)
                else {item}
            )
        faults += differences(name, read, listed)
    return faults


def schema_faults(tree: Tree) -> list[str]:
    return differences("params.yaml", fields(Params), leaves(tree.params))


# Imports that a part of the code must not have, as prefixes of dotted names.
FORBIDDEN_IMPORTS = {
    "stages.": ("tools", "benchmarks", "tests"),
    "stages.lib.": tuple(f"stages.{name}" for name in STAGES),
    "stages.lib.results.": ("stages.lib.models", "stages.lib.sources"),
    "stages.lib.models.": ("stages.lib.sources",),
    "tools.lib.": (*(f"stages.{name}" for name in STAGES), "tools."),
    "tools.": ("benchmarks", "tests"),
}
TRAINING = {"stages.lib.models.networks", "stages.lib.models.training"}
TENSORFLOW = TRAINING | {"tools.about"}


def below(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part.rstrip('.')}.") for part in parts)


def layer_faults(tree: Tree) -> list[str]:
    faults = []
    for name, source in (tree.modules | tree.tools).items():
        imported = {other for other in imports(name, source) if not below(other, ["tools.lib"])}
        forbidden = [
            part
            for start, parts in FORBIDDEN_IMPORTS.items()
            if name.startswith(start)
            for part in parts
        ]
        if name.count(".") == 1 and name.startswith("stages."):
            forbidden += [f"stages.{other}" for other in STAGES]
        faults += [
            f"{name} imports {other}" for other in sorted(imported) if below(other, forbidden)
        ]
        if below("tensorflow", imported) or below("keras", imported):
            faults += [] if name in TENSORFLOW else [f"{name} imports TensorFlow"]
        if name.startswith("stages.") and name.count(".") == 1 and name != "stages.train":
            trains = TRAINING & reached(tree.modules, name)
            faults += [f"{name} reaches TensorFlow"] * bool(trains)
    return faults


def cache_faults(tree: Tree) -> list[str]:
    faults = []
    for name, entry, _ in tree.stages():
        cached = outs(entry)
        faults += [
            f"{name}: {out}: cache is {kept}"
            for out, kept in cached.items()
            if out.startswith("data/") != kept
        ]
        faults += [f"{name}: cached and uncached outs"] * (len(set(cached.values())) > 1)
    return faults


def report_faults(tree: Tree) -> list[str]:
    shown, templates = list(tree.dvc["metrics"]), set()
    for item in tree.dvc["plots"]:
        for key, plot in item.items() if isinstance(item, dict) else [(item, {})]:
            sources = [axis for axis in (plot.get("x"), plot.get("y")) if isinstance(axis, dict)]
            shown += [file for axis in sources for file in axis] or [key]
            templates |= {plot["template"]} if "template" in plot else set()
    made = {out for _, entry, _ in tree.stages() for out in outs(entry)}
    faults = [f"dvc.yaml: {file} is no out" for file in sorted(set(shown) - made)]
    return faults + [
        f"dvc.yaml: template {name} is no file"
        for name in sorted(templates - tree.templates - BUILT_IN)
    ]


def name_faults(tree: Tree) -> list[str]:
    modules = {name.rpartition(".")[2] for name in tree.modules} | {
        path.stem for path in (ROOT / "tools").rglob("*.py")
    }
    others = {
        *("benchmarks", "end_to_end", "layouts", "page", "pipeline", "project", "publishing"),
        "readme",
    }
    allowed = {f"test_{name}" for name in modules | others}
    return differences(
        "tests", {f"test_{name}" for name in STAGES} | (tree.tests & allowed), tree.tests
    )


def test_stages_match_modules_in_dependency_order(tree: Tree) -> None:
    """Each stage runs by its name and after the stages whose outputs it reads."""
    assert stage_faults(tree) == []


def test_misconfigured_stages_are_found(tree: Tree) -> None:
    tree.modules["stages.publish"] = ""
    tree.dvc["stages"]["train"]["cmd"] = "python stages/train.py"
    tree.dvc["stages"]["train"]["deps"].append("data/normalized/scaling.json")
    tree.dvc["stages"]["fetch"] = tree.dvc["stages"].pop("fetch")
    readers = [name for name in STAGES[3:] if "data/raw" in tree.dvc["stages"][name]["deps"]]
    assert stage_faults(tree) == [
        "dvc.yaml: publish is missing",
        f"dvc.yaml: stages in the order {', '.join([*STAGES[1:], 'fetch'])}",
        "normalize: data/raw is no whole output of an earlier stage",
        "train: cmd is python stages/train.py",
        "train: data/raw is no whole output of an earlier stage",
        "train: data/normalized/scaling.json is no whole output of an earlier stage",
        *(f"{name}: data/raw is no whole output of an earlier stage" for name in readers),
    ]


def test_code_deps_match_direct_and_indirect_imports(tree: Tree) -> None:
    assert code_faults(tree) == []


def test_missing_and_superfluous_code_deps_are_found(tree: Tree) -> None:
    tree.dvc["stages"]["fetch"]["deps"].remove("stages/lib/sources/kaggle.py")
    tree.dvc["stages"]["plot"]["deps"].append("stages/lib/models/networks.py")
    tree.modules["stages.lib.stage"] += "from .sources import formats"
    expected = [
        "fetch: stages/lib/sources/kaggle.py is missing",
        "plot: stages/lib/models/networks.py is too many",
        *(f"{name}: stages/lib/sources/formats.py is missing" for name in STAGES[1:]),
    ]
    assert sorted(code_faults(tree)) == sorted(expected)


def test_data_deps_and_outs_match_path_constants(
    tree: Tree,
) -> None:
    """No path is written elsewhere in the code."""
    assert data_faults(tree) == []


def test_missing_and_superfluous_data_are_found(tree: Tree) -> None:
    tree.dvc["stages"]["train"]["deps"].remove("data/normalized")
    tree.dvc["stages"]["train"]["deps"].append("data/other")
    tree.dvc["stages"]["predict"]["outs"] = ["data/other.npz"]
    tree.modules["stages.plot"] += '\nTABLE = Path("reports/table.csv")\nwrite_csv(TABLE, epochs)'
    tree.modules["stages.lib.files"] += '\nnp.load(Path("data") / "raw")'
    assert data_faults(tree) == [
        "train deps: data/normalized is missing",
        "train deps: data/other is too many",
        "predict outs: data/predictions.npz is missing",
        "predict outs: data/other.npz is too many",
        "plot outs: reports/table.csv is missing",
        "stages.lib.files: data is no constant",
    ]


def test_params_match_the_sections_read(tree: Tree) -> None:
    assert params_faults(tree) == []


def test_missing_and_superfluous_sections_are_found(tree: Tree) -> None:
    tree.dvc["stages"]["fetch"]["params"].remove("dataset")
    tree.dvc["stages"]["train"]["params"] = ["model", "train"]
    tree.modules["stages.plot"] += (
        "\ndef seed():\n    everything = read_params()\n    return everything.train.seed"
    )
    tree.modules["stages.lib.results.metrics"] += "\ndef hand_on():\n    return dict(read_params())"
    assert params_faults(tree) == [
        "fetch: dataset is missing",
        "train: model.${model.kind} is missing",
        "train: model.kind is missing",
        "train: model is too many",
        "evaluate: all of params.yaml is missing",
        "plot: train is missing",
        "extract_errors: all of params.yaml is missing",
    ]


def test_params_yaml_matches_its_schema(
    tree: Tree,
) -> None:
    """Each kind of model has a section."""
    assert schema_faults(tree) == []
    kinds = ModelParams.model_json_schema()["properties"]["kind"]["enum"]
    assert set(kinds) == set(ModelParams.model_fields) - {"kind"}


def test_missing_and_superfluous_keys_are_found(tree: Tree) -> None:
    tree.params["train"]["epoch"] = tree.params["train"].pop("epochs")
    tree.params["seed"] = 0
    assert schema_faults(tree) == [
        "params.yaml: train.epochs is missing",
        "params.yaml: seed is too many",
        "params.yaml: train.epoch is too many",
    ]


def test_no_module_has_forbidden_imports(tree: Tree) -> None:
    """Only train reaches TensorFlow."""
    assert layer_faults(tree) == []


def test_forbidden_imports_are_found(tree: Tree) -> None:
    tree.modules["stages.evaluate"] += "\nfrom stages.predict import predict"
    tree.modules["stages.plot"] += "\nfrom tools.lib import runs\nimport tools.compare"
    tree.modules["stages.lib.files"] += "\nfrom .. import train"
    tree.modules["stages.lib.results.metrics"] += "\nfrom stages.lib.models import runtime"
    tree.modules["stages.lib.models.runtime"] += "\nfrom keras import ops"
    tree.modules["stages.lib.models.graph"] += "\nfrom stages.lib.sources import formats"
    tree.modules["stages.predict"] += "\nfrom stages.lib.models import kinds"
    tree.tools["tools.lib.runs"] += "\nfrom tools import compare\nfrom stages import train"
    assert set(layer_faults(tree)) >= {
        "stages.evaluate imports stages.predict",
        "stages.plot imports tools.compare",
        "stages.lib.files imports stages.train",
        "stages.lib.results.metrics imports stages.lib.models",
        "stages.lib.models.runtime imports TensorFlow",
        "stages.lib.models.graph imports stages.lib.sources",
        "stages.predict reaches TensorFlow",
        "tools.lib.runs imports tools.compare",
        "tools.lib.runs imports stages.train",
    }


def test_data_is_cached_and_reports_are_not(tree: Tree) -> None:
    """No stage writes both."""
    assert cache_faults(tree) == []


def test_invalid_cache_options_are_found(tree: Tree) -> None:
    tree.dvc["stages"]["train"]["outs"][0] = {"data/history.csv": {"cache": False}}
    tree.dvc["stages"]["extract_errors"]["outs"] = ["reports/errors.csv"]
    assert cache_faults(tree) == [
        "train: data/history.csv: cache is False",
        "train: cached and uncached outs",
        "extract_errors: reports/errors.csv: cache is True",
    ]


def test_metrics_plots_and_templates_exist(tree: Tree) -> None:
    assert report_faults(tree) == []


def test_plots_of_missing_files_are_found(tree: Tree) -> None:
    tree.dvc["metrics"] = ["reports/numbers.json"]
    tree.dvc["plots"] += [
        "reports/figures/new.png",
        {"new": {"template": "pie", "y": {"reports/new.csv": "count"}}},
    ]
    assert report_faults(tree) == [
        "dvc.yaml: reports/figures/new.png is no out",
        "dvc.yaml: reports/new.csv is no out",
        "dvc.yaml: reports/numbers.json is no out",
        "dvc.yaml: template pie is no file",
    ]


def test_test_files_match_modules(tree: Tree) -> None:
    """Every stage has a test file, and every test file has the name of a module."""
    assert name_faults(tree) == []


def test_package_init_files_contain_no_code() -> None:
    for path in (ROOT / "stages/__init__.py", ROOT / "stages/lib/__init__.py"):
        (statement,) = ast.parse(path.read_text()).body
        assert isinstance(statement, ast.Expr), path


def test_missing_and_superfluous_test_files_are_found(tree: Tree) -> None:
    tree.tests -= {"test_plot"}
    tree.tests |= {"test_plots"}
    assert name_faults(tree) == ["tests: test_plot is missing", "tests: test_plots is too many"]
