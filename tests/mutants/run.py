"""Mutation testing: change the code in one place at a time, and see whether its tests notice.

    python tests/mutants/run.py --sample 150

Prints how many mutants survive. Mutated are the purification, the encoder, the windows and scores,
labelling, and what the operators run on a CPU (no Triton kernel: its interpreter takes minutes).
A mutant swaps an operator, a comparison, a bound (min, max, any, all, ...), moves a number, flips a
condition, or drops a keyword argument or a call. Messages, annotations and assertions stay.

Every mutant is a process forked after the libraries are loaded, which runs the module's own tests
until the first failure. It survives when all pass; one that takes three times as long as they do,
and ten seconds more, counts as killed. The same sources, tests and seed give the same mutants and
figures: Hypothesis draws the same examples. The sample is drawn by a hash of the mutants' names, so
that an edit elsewhere does not draw another. equivalent.json names mutants that no test can tell
from the code, and why; they are not counted.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EQUIVALENT = HERE / "equivalent.json"
PROTOCOLS = "tests/test_base_protocols.py"
DENSE = ["tests/clip/test_dense.py", f"{PROTOCOLS}::test_features_are_the_published"]
META = ["tests/test_meta_arch.py", "tests/test_config.py"]
CALIBRATED = "tests/clip/methods/test_calibration.py"
OPS = ["tests/ops/test_dispatch.py", "tests/ops/test_reference_vectors.py"]
TARGETS: dict[str, list[str]] = {
    "freecp_d2/purification/head.py": ["tests/purification"],
    "freecp_d2/purification/stages.py": ["tests/purification", "tests/test_relations.py"],
    "freecp_d2/affinity/mask_files.py": ["tests/affinity/test_masks.py"],
    "freecp_d2/affinity/masks.py": ["tests/affinity/test_masks.py"],
    "freecp_d2/affinity/provider.py": ["tests/affinity/test_provider.py"],
    "freecp_d2/affinity/vit.py": ["tests/affinity/test_vit.py"],
    "freecp_d2/clip/blocks.py": DENSE,
    "freecp_d2/clip/dense.py": DENSE,
    "freecp_d2/clip/methods/calibration.py": ["tests/clip/methods/test_calibration.py"],
    "freecp_d2/clip/methods/pearl.py": ["tests/clip/methods/test_pearl.py"],
    "freecp_d2/clip/methods/resclip.py": ["tests/clip/methods/test_resclip.py"],
    "freecp_d2/clip/methods/semantic_feedback.py": [
        "tests/clip/methods/test_semantic_feedback.py",
    ],
    "freecp_d2/clip/methods/scclip.py": [CALIBRATED, "tests/clip/methods/test_scclip.py"],
    "freecp_d2/clip/methods/sfp.py": [CALIBRATED, "tests/clip/methods/test_sfp.py"],
    "freecp_d2/clip/loading.py": ["tests/clip/test_loading.py"],
    "freecp_d2/clip/text.py": ["tests/clip/test_text.py"],
    "freecp_d2/refinement.py": ["tests/test_refinement.py"],
    "freecp_d2/propagation.py": ["tests/test_propagation.py"],
    "freecp_d2/scores.py": [
        "tests/test_scores.py",
        f"{PROTOCOLS}::test_label_maps_are_the_published",
        *META,
    ],
    "freecp_d2/merging.py": [
        "tests/test_merging.py",
        f"{PROTOCOLS}::test_label_maps_are_the_published",
        *META,
    ],
    "freecp_d2/transfers.py": ["tests/test_transfers.py", "tests/purification"],
    "freecp_d2/sliding_window.py": META,
    "freecp_d2/encoding.py": [*META, "tests/affinity/test_provider.py"],
    "freecp_d2/purify.py": [*META, "tests/test_predictor.py"],
    "freecp_d2/words.py": [*META, "tests/test_words.py"],
    "freecp_d2/adapters/bafta.py": ["tests/adapters/test_bafta.py"],
    "freecp_d2/adapters/clip_ot.py": ["tests/adapters/test_clip_ot.py"],
    "freecp_d2/adapters/entropy_weights.py": ["tests/adapters/test_entropy_weights.py"],
    "freecp_d2/background.py": ["tests/test_background.py"],
    "freecp_d2/decorrelation.py": ["tests/test_decorrelation.py"],
    "freecp_d2/presence.py": ["tests/test_presence.py"],
    "freecp_d2/ranking.py": ["tests/test_ranking.py"],
    "freecp_d2/relations.py": ["tests/test_relations.py"],
    "freecp_d2/separability.py": ["tests/test_separability.py"],
    "freecp_d2/synonyms.py": ["tests/test_synonyms.py"],
    "freecp_d2/meta_arch.py": META,
    "freecp_d2/journal.py": ["tests/test_journal.py"],
    "freecp_d2/locks.py": ["tests/test_locks.py"],
    "freecp_d2/labelling/core.py": ["tests/labelling/test_core.py"],
    "freecp_d2/index.py": ["tests/test_index.py"],
    "freecp_d2/labelling/items.py": ["tests/labelling/test_items.py"],
    "freecp_d2/labelling/merge.py": ["tests/labelling/test_merge.py"],
    "freecp_d2/labelling/settings.py": ["tests/labelling/test_settings.py"],
    "freecp_d2/labelling/worker.py": ["tests/labelling/test_worker.py"],
    "freecp_d2/ops/_checks.py": ["tests/ops/test_refine.py", "tests/ops/test_soft_iou.py"],
    "freecp_d2/ops/box_mask.py": ["tests/ops/test_box_mask.py", *OPS],
    "freecp_d2/ops/mean_attention.py": ["tests/ops/test_mean_attention.py", *OPS],
    "freecp_d2/ops/pamr.py": ["tests/ops/test_pamr.py", *OPS],
    "freecp_d2/ops/refine.py": ["tests/ops/test_refine.py", *OPS],
    "freecp_d2/ops/sinkhorn_affinity.py": ["tests/ops/test_sinkhorn_affinity.py", *OPS],
    "freecp_d2/ops/soft_iou.py": ["tests/ops/test_soft_iou.py", *OPS],
}
"""Source file -> its tests, as pytest takes them."""
DESELECTED = "not triton"
"""The parameters of tests/ops that run kernels in Triton's interpreter."""
COPIED = ("freecp_d2", "tests", "configs", "projects", "train_net.py", "pyproject.toml")
LIBRARIES = (
    *("pytest", "_pytest.assertion.rewrite", "hypothesis", "torch", "torchvision", "triton"),
    *(
        "triton.language",
        "open_clip",
        "cv2",
        "scipy.ndimage",
        "scipy.sparse.csgraph",
        "safetensors",
    ),
    *("matplotlib", "pycocotools.mask", "PIL.Image", "detectron2.config", "detectron2.data"),
    *("detectron2.modeling", "detectron2.evaluation", "torch._dynamo", "torch.testing"),
)
"""What is loaded once, before the forks. Nothing of this project."""

OPERATORS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_PAIRS = "min:max amin:amax argmin:argmax minimum:maximum zeros:ones any:all clamp_min:clamp_max"
NAMES = {a: b for pair in _PAIRS.split() for a, b in (pair.split(":"), pair.split(":")[::-1])}
NAMES |= {"sum": "mean", "mean": "sum", "new_zeros": "new_ones", "new_ones": "new_zeros"}
NAMES |= {"zeros_like": "ones_like", "ones_like": "zeros_like", "sorted": "list"}


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a file.

    Attributes:
        name: file, function, line as it was and as it is; unique.
        source: of the whole file, changed.
    """

    file: str
    name: str
    source: str


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every mutant of a source file."""
    tree = ast.parse(source)
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = b"".join(lines)
    mutants, seen = [], Counter[str]()
    for scope, node, new in _changes(tree):
        line = lines[node.lineno - 1].decode().strip()
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(new)
        text = text if isinstance(new, ast.stmt) else f"({text})"
        before = " ".join(whole[begin:end].decode().split())
        after = " ".join(ast.unparse(new).split())
        name = f"{file}:{scope}: {line}: {before} -> {after}"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        changed = (whole[:begin] + text.encode() + whole[end:]).decode()
        ast.parse(changed)
        mutants.append(Mutant(file, name, changed))
    return mutants


def _changes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Scope, a node and what may take its place."""
    stack: list[tuple[str, ast.AST]] = [("module", tree)]
    while stack:
        scope, node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = node.name if scope == "module" else f"{scope}.{node.name}"
            if _is_kernel(node):
                continue
        for new in _replacements(node):
            yield scope, node, new
        if isinstance(node, ast.If | ast.While):
            yield scope, node.test, ast.UnaryOp(ast.Not(), node.test)
        stack += [(scope, child) for child in reversed(list(_children(node)))]


def _is_kernel(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it is a Triton kernel, or what launches one."""
    text = ast.unparse(node)
    return isinstance(node, ast.FunctionDef) and ("@triton.jit" in text or "_kernel[" in text)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What is run: no annotations, decorators, messages, docstrings or assertions."""
    skipped = {"annotation", "returns", "decorator_list", "bases", "type_params"}
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if field in skipped or not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.JoinedStr | ast.Raise | ast.Assert):
                continue
            # `strict` of zip guards what is of one length by construction.
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            yield child


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            ops = list(node.ops)
            ops[index] = OPERATORS[type(operator)]()
            yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPERATORS[type(node.op)](), node.values)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(2 * node.value or 1.0)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if not ast.unparse(node).startswith(("super()", "log.")):
            yield ast.Pass()
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict"):
                rest = [other for other in node.keywords if other is not keyword]
                yield ast.Call(node.func, node.args, rest)


def sample_of(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """`size` of the mutants (all, if 0), by a hash of seed and name, in their own order."""

    def draw(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    chosen = {m.name for m in sorted(mutants, key=draw)[: size or None]}
    return [mutant for mutant in mutants if mutant.name in chosen]


def run_tests(folder: Path, tests: list[str], limit: float) -> str:
    """How the tests of a folder end in a forked process of its own: passed, failed or late."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 70
        try:
            os.setsid()
            code = _in_child(folder, tests)
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "failed" if status else "passed"
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "late"


def _in_child(folder: Path, tests: list[str]) -> int:
    import hypothesis
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutants")
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", DESELECTED]
    return int(pytest.main([*options, f"--rootdir={folder}", *tests]))


def copy_of(root: Path, folder: Path) -> None:
    """What tests read of a checkout."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(root / name, folder / name)


def main(argv: list[str] | None = None) -> int:
    """Run the mutants and print the table; 1 if the tests fail without any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="source files; all of TARGETS by default")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--list", action="store_true", help="print the mutants' names and stop")
    args = parser.parse_args(argv)
    root = args.root.resolve()
    for file in args.files:
        if file not in TARGETS:
            parser.error(f"{file} has no tests of its own; choose from {', '.join(TARGETS)}")
    files = args.files or [file for file in TARGETS if (root / file).is_file()]
    known = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.is_file() else {}
    mutants = [m for file in files for m in mutants_of(file, (root / file).read_text())]
    total = len(mutants)
    for name in sorted(known.keys() - {m.name for m in mutants}):
        if name.split(":", 1)[0] in files:
            print(f"equivalent.json names a mutant that is no more: {name}", file=sys.stderr)
    mutants = sample_of([m for m in mutants if m.name not in known], args.sample, args.seed)
    if args.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0

    # One thread, no GPU and no file of bytes: a child has the sources that it is given.
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        importlib.import_module(library)
    start = time.monotonic()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of(root, folder)
        for file in dict.fromkeys(mutant.file for mutant in mutants):
            tests = [test for test in TARGETS[file] if (folder / test.split("::")[0]).exists()]
            begin = time.monotonic()
            if run_tests(folder, tests, 600) != "passed":
                print(f"{' '.join(tests)} fail without any mutant", file=sys.stderr)
                return 1
            limit = 3 * (time.monotonic() - begin) + 10
            counts[file] = Counter()
            own = [mutant for mutant in mutants if mutant.file == file]
            original = (folder / file).read_text()
            for mutant in tqdm(own, file, unit="mutant", leave=False, disable=None):
                (folder / file).write_text(mutant.source)
                result = run_tests(folder, tests, limit)
                counts[file][result] += 1
                if result == "passed":
                    tqdm.write(f"survived: {mutant.name}")
                    sys.stdout.flush()
            (folder / file).write_text(original)
            done = sum(count.total() for count in counts.values())
            seconds = time.monotonic() - start
            print(f"{file}: {done} of {len(mutants)} mutants, {seconds:.0f} s", flush=True)
    print(table(counts))
    survived = sum(count["passed"] for count in counts.values())
    print(
        f"\n{survived} of {len(mutants)} mutants survive (of {total} in all, {len(known)} known as "
        f"equivalent, seed {args.seed}; {time.monotonic() - start:.0f} s)"
    )
    return 0


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown of file -> how many of its mutants passed, failed and were late."""
    rows = ["", "| file | mutants | killed | by time | survive |", "|---|---|---|---|---|"]
    for file, count in counts.items():
        failed, late, passed = count["failed"], count["late"], count["passed"]
        rows.append(f"| {file} | {count.total()} | {failed} | {late} | {passed} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
