"""Finds sums over components, and Gaussian densities, in the text of a module, however they are written."""

import ast

DENSITIES = {"multivariate_normal", "MultivariateNormal", "MixtureSameFamily", "logpdf"}
SUMS_OF_LOGARITHMS = {"logsumexp", "logaddexp", "logaddexp2", "cumlogsumexp", "softmax", "log_softmax"}
EXPONENTIALS = {"exp", "exp2", "expm1"}
LOGARITHMS = {"log", "log2", "log10", "log1p"}
SUMS = {"sum", "nansum", "cumsum", "mean", "average", "dot", "vdot", "matmul", "einsum", "tensordot", "reduce", "add"}


def find(source: str) -> set[tuple[str, str]]:
    """(function, how) of every sum of exponentials whose logarithm, or share of the total, is taken.

    Values are followed through the variables of a function: `e = exp(a); s = e.sum(0); log(s)` is found, and so are
    `e / s`, which is a softmax, and a cumulative sum of exponentials, with which allocations are drawn.
    """
    found: set[tuple[str, str]] = set()
    _search(ast.parse(source), "module", found)
    return found


def _search(scope: ast.AST, name: str, found: set[tuple[str, str]]) -> None:
    exponentials: set[str] = set()
    sums: set[str] = set()

    def has(node: ast.AST, words: set[str], names: set[str]) -> bool:
        return any(_called(part) in words or (isinstance(part, ast.Name) and part.id in names) for part in _own(node))

    def is_sum(node: ast.AST) -> bool:
        for part in _own(node):
            if isinstance(part, ast.Name) and part.id in sums:
                return True
            summed = _called(part) in SUMS or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.MatMult))
            if summed and has(part, EXPONENTIALS, exponentials):
                return True
        return False

    nodes = list(_own(scope))
    for _ in range(3):  # a variable may be used, in a loop, before the line that fills it
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                filled = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
                if _called(node.value) in LOGARITHMS:
                    continue
                if is_sum(node.value):
                    sums |= filled
                elif has(node.value, EXPONENTIALS, exponentials):
                    exponentials |= filled
    for node in nodes:
        word = _called(node)
        mentioned = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if mentioned in SUMS_OF_LOGARITHMS | DENSITIES:
            found.add((name, mentioned))
        if word in LOGARITHMS and any(is_sum(argument) for argument in node.args):
            found.add((name, "log of a sum of exp"))
        if word == "cumsum" and has(node, EXPONENTIALS, exponentials):
            found.add((name, "cumulative sum of exp"))
        division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        if division and has(node.left, EXPONENTIALS, exponentials) and is_sum(node.right):
            found.add((name, "share of a sum of exp"))
    for child in nodes:
        if child is not scope and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _search(child, child.name, found)


def _own(scope: ast.AST) -> list[ast.AST]:
    """The nodes of a scope, without the bodies of the functions in it."""
    nodes, todo = [], [scope]
    while todo:
        node = todo.pop(0)
        nodes.append(node)
        if node is scope or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))
    return nodes


def _called(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
