"""The house rules, each a function from modules to complaints; tests/test_house.py shows every one of them firing."""

import ast
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

HEAVY = {
    "torch", "transformers", "datasets", "peft", "trl", "accelerate", "evaluate", "numpy", "pyarrow", "bitsandbytes",
    "pandas", "safetensors", "tokenizers", "lm_eval",
    "torchao", "llmcompressor", "compressed_tensors", "gguf", "llama_cpp",
}  # fmt: skip

# room -> the rooms that it may import
_GROUND = {"core", "recipe", "plan"}
_MIDDLE = {"data", "model", "evaluate", "runs", "kernels"}
LAYERS = {
    "": set(),
    "core": set(),
    "recipe": {"core"},
    "plan": {"core", "recipe"},
    **dict.fromkeys(_MIDDLE, _GROUND),
    "train": _GROUND | _MIDDLE,
    "rl": _GROUND | _MIDDLE | {"train"},
    "methods": _GROUND | _MIDDLE | {"train", "rl"},
    "exam": _GROUND | _MIDDLE | {"train"},
    "compress": _GROUND | _MIDDLE | {"train", "exam"},
    "serve": _GROUND | _MIDDLE,
    "cli": _GROUND | _MIDDLE | {"train", "exam", "compress", "serve"},
    "__main__": {"cli"},
}
CLI_OF_TRAIN = {"pipeline", "session", "launch", "worker", "inputs", "signals"}
LAYER_EXCEPTIONS = {
    # a maintainer's script: it makes the embedded tokenizer from the embedded text, and nothing imports it
    ("tunekit.model.builtin.make_tokenizer", "tunekit.data.world"),
}
PLUGINS = (
    "tunekit.methods", "tunekit.model.adapters", "tunekit.data.formats", "tunekit.evaluate.tasks",
    "tunekit.evaluate.metrics", "tunekit.evaluate.engines", "tunekit.model.quantizers", "tunekit.rl.rewards",
    "tunekit.compress.backends", "tunekit.compress.runtimes", "tunekit.compress.exports",
    "tunekit.compress.prune.ways",
)  # fmt: skip
BROAD_EXCEPT = {
    "tunekit.cli.shared",  # the last resort of the program
    "tunekit.evaluate.metrics._hub",  # programs that others published fail as they like
}
DANGEROUS = {
    # on annotations of the installed transformers' and PEFT's own source, without builtins
    ("tunekit.recipe.extra", "eval"),
    ("tunekit.recipe.peft_fields", "eval"),
}
ENVIRONMENT = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"}
WHOLE_ENVIRONMENT = {
    "tunekit.core.startup",  # sets how OpenMP's threads wait, before torch is loaded
    "tunekit.train.launch",  # handed on to the ranks
    "tunekit.rl.colocated",  # vLLM finds there how the processes meet
    "tunekit.evaluate.endpoint",  # a server's key, from the variable that the recipe names
    "tunekit.runs.scrub",  # the values of secrets are looked for, to be taken out of what is shown
}
IMPORTED_INSIDE_FUNCTIONS = {
    "tunekit.kernels.attention", "tunekit.kernels.label_loss", "tunekit.kernels.segments",
    "tunekit.kernels.token_logps", "tunekit.kernels.divergence", "tunekit.rl.pair_losses",
    "tunekit.rl.kto_loss", "tunekit.rl.advantages", "tunekit.rl.policy_losses", "tunekit.rl.pairs",
    "tunekit.rl.kto", "tunekit.rl.scores", "tunekit.rl.policy", "tunekit.rl.teaching", "tunekit.rl.groups",
    "tunekit.rl.compared", "tunekit.rl.estimated", "tunekit.train.causal", "tunekit.train.trainer",
    "tunekit.train.batches", "tunekit.train.muon", "tunekit.train.callbacks", "tunekit.train.guards",
    "tunekit.train.late", "tunekit.train.ranks", "tunekit.train.saving", "tunekit.evaluate.statistics",
    "tunekit.model.bottleneck.config", "tunekit.model.bottleneck.layer", "tunekit.model.bottleneck.tuner",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module. ``when``: ``module``, ``function``, or ``types`` (under TYPE_CHECKING)."""

    target: str
    when: str


@dataclass(frozen=True)
class Module:
    name: str
    text: str

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @property
    def room(self):
        return [*self.name.split("."), ""][1]

    def nodes(self, *kinds):
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    def imports(self, names=frozenset()):
        """Everything imported; ``from a import b`` is ``a.b`` when that is one of the module ``names``."""
        found = []

        def visit(node, when):
            if isinstance(node, ast.Import):
                found.extend(Import(alias.name, when) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.append(Import(whole if whole in names else node.module, when))
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in ast.iter_child_nodes(node):
                visit(child, "types" if types or when == "types" else "function" if inside else when)

        visit(self.tree, "module")
        return found


def layers(modules):
    names = {module.name for module in modules}
    for module in modules:
        for found in module.imports(names):
            if found.target.split(".")[0] != "tunekit" or found.target == "tunekit":
                continue
            room = found.target.split(".")[1]
            if room != module.room and room not in LAYERS[module.room]:
                if (module.name, found.target) not in LAYER_EXCEPTIONS:
                    yield f"{module.name} imports {found.target}"
            elif module.room == "cli" and room == "train" and found.target.split(".")[2] not in CLI_OF_TRAIN:
                yield f"{module.name} imports {found.target}"
            if (module.name, found.target) not in LAYER_EXCEPTIONS and any(
                found.target == script for script, _ in LAYER_EXCEPTIONS
            ):
                yield f"{module.name} imports the script {found.target}"


def cycles(modules):
    names = {module.name for module in modules}
    graph = {
        module.name: {found.target for found in module.imports(names) if found.when == "module"} & names
        for module in modules
    }
    done = set()

    def visit(name, path):
        if name in path:
            yield " -> ".join([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph[name]):
                yield from visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        yield from visit(name, [])


def plugins(modules):
    """A plug-in is imported by its folder's registry only: not by another plug-in, and not by path elsewhere."""
    names = {module.name for module in modules}
    for module in modules:
        for found in module.imports(names):
            folder = found.target.rpartition(".")[0]
            if folder in PLUGINS and found.target != module.name:
                yield f"{module.name} imports the plug-in {found.target}"


def long_files(modules):
    return [f"{m.name} has {n} lines" for m in modules if (n := len(m.text.splitlines())) > 300]


def long_functions(modules):
    for module in modules:
        for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
            if (lines := node.end_lineno - node.lineno + 1) > 60:
                yield f"{module.name}.{node.name} has {lines} lines"


def bare_names(modules):
    """Public modules, classes, functions and methods without a docstring."""

    def visit(node, path):
        if not ast.get_docstring(node):
            yield f"{path} has no docstring"
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else []:
            kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(child, kinds) and not child.name.startswith("_"):
                yield from visit(child, f"{path}.{child.name}")

    for module in modules:
        yield from visit(module.tree, module.name)


def without_annotations(modules):
    for module in modules:
        methods = {id(f) for c in module.nodes(ast.ClassDef) for f in c.body if not _is_static(f)}
        for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args][id(node) in methods :]
            given += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
            bare = [argument.arg for argument in given if argument.annotation is None]
            if bare or node.returns is None:
                yield f"{module.name}.{node.name} lacks types: {', '.join(bare) or 'return'}"


def _is_static(node):
    return any(getattr(name, "id", "") == "staticmethod" for name in getattr(node, "decorator_list", ()))


def broad_excepts(modules):
    """`except Exception` and wider, unless it only cleans up and raises again."""
    for module in modules:
        for node in module.nodes(ast.ExceptHandler):
            words = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {None}
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if words & {None, "Exception", "BaseException"} and not raises_again and module.name not in BROAD_EXCEPT:
                yield f"{module.name}:{node.lineno} broad except"


def dangerous(modules):
    """What runs code out of data: pickle and its kin, torch.load, eval, exec, a shell."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    calls = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "numpy.load"}
    for module in modules:
        found = [(i.target, f"imports {i.target}") for i in module.imports() if i.target.split(".")[0] in unsafe]
        for node in module.nodes(ast.Call):
            name = ast.unparse(node.func)
            if name in calls or name.split(".")[-1] == "unsafe_load":
                found.append((name, f"calls {name}"))
            found += [("shell", "shell=True") for k in node.keywords if k.arg == "shell" and not _is_false(k.value)]
        yield from (f"{module.name} {what}" for key, what in found if (module.name, key) not in DANGEROUS)


def environment(modules):
    for module in modules:
        allowed = set()
        for node in module.nodes(ast.Call, ast.Subscript):
            get = isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv") and node.args
            item = isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ"
            name = node.args[0] if get else node.slice if item else None
            if isinstance(name, ast.Constant) and (name.value.startswith("HF_") or name.value in ENVIRONMENT):
                allowed |= {id(part) for part in ast.walk(node)}
        for node in module.nodes(ast.Attribute, ast.ImportFrom):
            reads = isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
            reads = reads or (isinstance(node, ast.ImportFrom) and node.module == "os" and "env" in ast.unparse(node))
            if reads and id(node) not in allowed and module.name not in WHOLE_ENVIRONMENT:
                yield f"{module.name}:{node.lineno} reads the environment"


def remote_code(modules):
    for module in modules:
        for node in module.nodes(ast.Call):
            if any(k.arg == "trust_remote_code" and not _is_false(k.value) for k in node.keywords):
                yield f"{module.name}:{node.lineno} trusts remote code"


def _is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def heavy_imports(modules):
    for module in modules:
        heavy = [i.target for i in module.imports() if i.when == "module" and i.target.split(".")[0] in HEAVY]
        if heavy and module.name not in IMPORTED_INSIDE_FUNCTIONS:
            yield f"{module.name} imports {heavy[0]} at module level"


def patches(modules):
    """An attribute of something imported from another library is assigned to."""
    for module in modules:
        foreign = {
            (alias.asname or alias.name).split(".")[0]
            for node in module.nodes(ast.Import, ast.ImportFrom)
            if not (getattr(node, "module", None) or "").startswith(("tunekit", "__future__"))
            for alias in node.names
        }
        for node in module.nodes(ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Call):
            if isinstance(node, ast.Call):
                targets = node.args[:1] if ast.unparse(node.func) == "setattr" else []
            else:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                targets = [target.value for target in targets if isinstance(target, ast.Attribute)]
            for target in targets:
                if ast.unparse(target).split(".")[0] in foreign:
                    yield f"{module.name}:{node.lineno} patches {ast.unparse(target)}"


def duplicated(modules):
    """(lines within six-line windows that stand elsewhere too, all lines); blank lines do not count."""
    windows = defaultdict(list)
    total = 0
    for module in modules:
        lines = [stripped for line in module.text.splitlines() if (stripped := line.strip())]
        total += len(lines)
        for start in range(len(lines) - 5):
            windows[tuple(lines[start : start + 6])].append((module.name, start))
    covered = {
        (name, start + i) for places in windows.values() if len(places) > 1 for name, start in places for i in range(6)
    }
    return len(covered), total, Counter(name for name, _ in covered)


def too_much_copied(modules):
    copied, total, where = duplicated(modules)
    if copied > 0.03 * total:
        yield f"{copied} of {total} lines are copied, most in {where.most_common(3)}"


RULES = (
    layers, cycles, plugins, long_files, long_functions, bare_names, without_annotations, broad_excepts, dangerous,
    environment, remote_code, heavy_imports, patches, too_much_copied,
)  # fmt: skip
