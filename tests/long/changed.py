"""The mutants of a source file: one comparison, sum, constant, order of arguments or refusal is another in each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A piece of a file that is replaced by another text, the lines of its statement, and if it is in a function."""

    file: str
    line: int
    piece: tuple[int, int]
    text: str
    lines: range
    inside: bool

    def of(self, source: bytes) -> bytes:
        """The file with the piece replaced."""
        return source[: self.piece[0]] + self.text.encode() + source[self.piece[1] :]


COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.MatMult, ast.Pow)
PAIRS = (
    ("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("any", "all"), ("floor", "ceil"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("new_zeros", "new_ones"), ("lower", "upper"), ("sum", "mean"),
)  # fmt: skip
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS}
DROPPED = {"clamp", "clamp_min", "clamp_max", "abs", "clone", "copy", "relu", "double", "flip", "sqrt", "square"}


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of an expression or a statement."""
    match node:
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                for new in COMPARED[type(op)]:
                    yield ast.Compare(left, [*ops[:i], new(), *ops[i + 1 :]], comparators)
        case ast.BinOp(left, op, right):
            if type(op) in COMPUTED:
                yield ast.BinOp(left, COMPUTED[type(op)](), right)
            if isinstance(op, ORDERED):
                yield ast.BinOp(right, op, left)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from (ast.BoolOp(op, values[:i] + values[i + 1 :]) for i in range(len(values)) if len(values) > 2)
            yield from values if len(values) == 2 else ()
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
            if value:
                yield ast.Constant(value * 2)
        case ast.Call():
            yield from _calls(node)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.AugAssign(target, op, value) if type(op) in COMPUTED:
            yield ast.AugAssign(target, COMPUTED[type(op)](), value)
        case ast.Raise() | ast.Continue() | ast.Break() | ast.Expr(ast.Call()) | ast.Assign([ast.Subscript()]):
            yield ast.Pass()


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    """Another function of its kind, the method left out, two arguments that lie side by side swapped."""
    f, args = node.func, node.args
    if isinstance(f, ast.Name) and f.id in OTHER:
        yield ast.Call(ast.Name(OTHER[f.id]), args, node.keywords)
    if isinstance(f, ast.Attribute) and f.attr in OTHER:
        yield ast.Call(ast.Attribute(f.value, OTHER[f.attr]), args, node.keywords)
    if isinstance(f, ast.Attribute) and f.attr in DROPPED:
        yield args[0] if ast.unparse(f.value) == "torch" and args else f.value
    for i in range(len(args) - 1):
        if not any(isinstance(a, ast.Starred) for a in args[i : i + 2]):
            yield ast.Call(f, [*args[:i], args[i + 1], args[i], *args[i + 2 :]], node.keywords)


class Finder(ast.NodeVisitor):
    """Every mutant of a file; not in annotations, decorators, texts and what an error says."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.found = file, source, list[Mutant]()
        self.lines, self.inside = range(0), False
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        """The node and what is in it."""
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            self.lines = range(node.lineno, max(node.lineno, body[0].lineno - 1 if body else node.end_lineno or 0) + 1)
        if isinstance(node, ast.match_case):
            self.lines = range(node.pattern.lineno, node.body[0].lineno + 1)
        if isinstance(node, ast.If | ast.While):
            self._add(node.test, ast.UnaryOp(ast.Not(), node.test))
            if len(node.body) == 1 and isinstance(node.body[0], ast.Return) and not node.orelse:
                self._add(node.body[0], ast.Pass())
        if isinstance(node, ast.comprehension):
            for test in node.ifs:
                self._add(test, ast.UnaryOp(ast.Not(), test))
        for new in changed(node):
            self._add(node, new)
        if isinstance(node, ast.JoinedStr | ast.arg | ast.Raise):
            return
        for name, value in ast.iter_fields(node):
            outside, function = self.inside, isinstance(node, ast.FunctionDef | ast.Lambda)
            self.inside = outside or (function and name == "body")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST) and name not in {"annotation", "returns", "decorator_list"}:
                    self.visit(part)
            self.inside = outside

    def _add(self, node: Any, new: ast.AST) -> None:
        begin = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(ast.fix_missing_locations(new))
        text = f"({text})" if isinstance(new, ast.expr) and not isinstance(new, ast.Constant) else text
        if ast.dump(new) != ast.dump(node):
            self.found.append(Mutant(self.file, node.lineno, (begin, end), text, self.lines, self.inside))
