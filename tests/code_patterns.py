"""A source file as the rules of test_code_patterns.py see it, and where in it the reads of a stream go."""

import ast
from collections.abc import Iterator, Sequence

Finding = tuple[int, str]  # the line, and what is there

CALL = "facenet_client._call"
READS = frozenset({"read", "start_read", "anext", "__anext__"})
TASKS = frozenset({"create_task", "ensure_future", "shield", "wait"})  # what gives tasks of what it is given, or holds
ADDS = frozenset({"add", "append", "appendleft", "put_nowait"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """A file's syntax tree, and what its names stand for."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.tree = ast.parse(text)
        self._originals: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._originals |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and self.name(node.value):
                self._originals[node.targets[0].id] = self.name(node.value)

    def name(self, node: ast.AST) -> str:
        """The last part of what is named, whatever it is called here; nothing where it has no name."""
        if isinstance(node, ast.Subscript):
            return self.name(node.value)
        if isinstance(node, ast.Attribute):
            return node.attr
        return self._originals.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def calls(self, *within: ast.AST) -> Iterator[tuple[str, ast.Call]]:
        """Every call, by its name."""
        for node in (node for each in within or (self.tree,) for node in ast.walk(each)):
            if isinstance(node, ast.Call):
                yield self.name(node.func), node

    def names(self, *within: ast.AST) -> set[str]:
        """Everything that is named."""
        return {self.name(node) for each in within for node in ast.walk(each)} - {""}

    def withs(self) -> Iterator[tuple[str, ast.Call, Sequence[ast.stmt]]]:
        """The calls that blocks are under, by their names, and the blocks."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.With | ast.AsyncWith):
                for call in (item.context_expr for item in node.items):
                    if isinstance(call, ast.Call):
                        yield self.name(call.func), call, node.body

    def comment(self, node: ast.expr | ast.stmt | ast.ExceptHandler) -> str:
        """What stands beside its first line."""
        return self.lines[node.lineno - 1].partition("  # ")[2]


class Readings:
    """What in a file reads a stream in a task of its own: the names, wherever in the file, of such tasks, of what holds
    some, and of functions that give one. What a function that was handed one gives is one only where it is."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._functions = {node.name: node for node in ast.walk(source.tree) if isinstance(node, Function)}
        self._names: set[str] = set()
        self._handed: set[str] = set()  # functions
        self._results: set[str] = set()  # functions that return what was read
        while new := {name for node in ast.walk(source.tree) for name in self._named(node)} - self._names:
            self._names |= new
        while new := {name for name, node in self._functions.items() if self._returned(node)} - self._results:
            self._results |= new

    def scopes(self) -> Iterator[tuple[str, list[ast.AST]]]:
        """The file's functions and what is in each, but for those within it; the file itself has no name."""
        for scope in (node for node in ast.walk(self._source.tree) if isinstance(node, ast.Module | Function)):
            yield getattr(scope, "name", ""), list(_own(scope))

    def reads(self, node: ast.AST) -> bool:
        """Whether it is a read, a task that reads, or what holds one."""
        if isinstance(node, ast.Await):
            return self._called(node.value) == "wait" and self.reads(node.value)
        if isinstance(node, ast.Call):
            name, is_handed = self._called(node), any(map(self.reads, self._arguments(node)))
            if name in READS or name not in self._functions:
                return name in READS or (name in TASKS and is_handed)
            return name in self._names and (is_handed or name not in self._handed)
        if isinstance(node, ast.Name | ast.Attribute):
            return self._source.name(node) in self._names
        return any(map(self.reads, ast.iter_child_nodes(node)))

    def takes(self, node: ast.AST) -> bool:
        """Whether it is what was read."""
        if isinstance(node, ast.Await) and (name := self._called(node.value)) in self._results:
            is_handed = isinstance(node.value, ast.Call) and any(map(self.reads, self._arguments(node.value)))
            return is_handed or name not in self._handed
        if isinstance(node, ast.Await):
            return self._called(node.value) != "wait" and self.reads(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "result":
            return self.reads(node.func.value)
        return False

    def is_handed_on(self, name: str, node: ast.AST, nodes: Sequence[ast.AST]) -> bool:
        """Whether it is what the function of this name returns to another in the file, or is given to one that asks
        whether it is the end."""
        calls = [each for each in nodes if isinstance(each, ast.Call) and node in self._arguments(each)]
        if any(each in self._functions and asks(self._functions[each]) for each in map(self._called, calls)):
            return True
        returned = any(isinstance(each, ast.Return) and each.value is node for each in nodes)
        return returned and any(self._called(each) == name for each in ast.walk(self._source.tree))

    def _called(self, node: ast.AST) -> str:
        return self._source.name(node.func) if isinstance(node, ast.Call) else ""

    def _arguments(self, call: ast.Call) -> list[ast.expr]:
        return [*call.args, *(keyword.value for keyword in call.keywords)]

    def _returned(self, function: Function) -> bool:
        returns = [node.value for node in _own(function) if isinstance(node, ast.Return) and node.value is not None]
        return any(map(self.takes, returns))

    def _named(self, node: ast.AST) -> Iterator[str]:
        """The names that stand for what reads, as far as this node tells."""
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value and self.reads(node.value):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from self._targets(target)
        elif isinstance(node, ast.For | ast.comprehension) and self.reads(node.iter):
            yield from self._targets(node.target)
        elif isinstance(node, Function):
            if any(isinstance(each, ast.Return) and each.value and self.reads(each.value) for each in _own(node)):
                yield node.name
        elif isinstance(node, ast.Call):
            yield from self._given(node)

    def _targets(self, target: ast.expr) -> Iterator[str]:
        if isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                yield from self._targets(each)
        else:
            yield self._source.name(target)

    def _given(self, call: ast.Call) -> Iterator[str]:
        """What is added to, and the parameters of this file's functions that are called."""
        name = self._called(call)
        if name in ADDS and isinstance(call.func, ast.Attribute) and any(map(self.reads, call.args)):
            yield self._source.name(call.func.value)
        if name not in self._functions or name in READS:
            return
        names = [each.arg for each in self._functions[name].args.args]
        given = dict(zip(names[names[:1] == ["self"] :], call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        for parameter, value in given.items():
            if self.reads(value):
                self._handed.add(name)
                yield parameter


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, or a file, but for what is in functions within it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, Function):
            yield node
            yield from _own(node)


def asks(node: ast.AST) -> bool:
    """Whether something is compared with the end of a stream there."""
    compared = (each for each in ast.walk(node) if isinstance(each, ast.Compare))
    return any(
        "EOF" in (getattr(end, "attr", ""), getattr(end, "id", "")) for each in compared for end in ast.walk(each)
    )


def cancelled_readings(source: Source) -> Iterator[Finding]:
    """Reads that are tasks of their own, and are cancelled, by whatever name; each with its function."""
    readings = Readings(source)
    for function, nodes in readings.scopes():
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr == "cancel" and readings.reads(node.value):
                yield node.lineno, f"{function}: {ast.unparse(node)}"


def unended_reads(source: Source) -> Iterator[Finding]:
    """What is read of a stream and not compared with its end, in that function or in one of the file that gets it. A
    client's Call raises at its end: who gets one by its Channel need not ask."""
    if any(isinstance(node, ast.ImportFrom) and node.module == CALL for node in ast.walk(source.tree)):
        return
    readings = Readings(source)
    for function, nodes in readings.scopes():
        if any(map(asks, nodes)):
            continue
        for node in nodes:
            if readings.takes(node) and not readings.is_handed_on(function, node, nodes):
                yield getattr(node, "lineno", 0), f"{function}: {ast.unparse(node)}"
