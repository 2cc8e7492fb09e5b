"""One flat file from several of ours: what a file needs of the others, moved into it word for word."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class File:
    """A file of this project, split into its definitions. own: alias -> the module of this project that it names;
    bound: name -> (module, name there) of one of ours; outside: name -> the line that imports it from elsewhere."""

    def __init__(self, module: str):
        self.lines = (ROOT / f"{module.replace('.', '/')}.py").read_bytes().split(b"\n")
        self.own, self.bound, self.outside = {}, {}, {}
        self.parts = []  # (names that it defines, node)
        for node in ast.parse(b"\n".join(self.lines)).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.take_import(node)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.parts.append(({node.name}, node))
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.parts.append(
                    ({name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}, node)
                )
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                raise ValueError(f"{module}.py:{node.lineno}: a statement that flat files cannot hold")

    def take_import(self, node):
        source = getattr(node, "module", None)
        for alias in node.names:
            name, whole = alias.asname or alias.name, f"{source}.{alias.name}" if source else alias.name
            if is_own(whole):
                self.own[name] = whole
            elif source and is_own(source):
                if alias.asname:
                    raise ValueError(f"{alias.name} gets another name, {alias.asname}; import it under its own")
                self.bound[name] = (source, alias.name)
            else:
                text = f"from {source} import {alias.name}" if source else f"import {alias.name}"
                self.outside[name] = text + (f" as {alias.asname}" if alias.asname else "")

    def modules(self) -> set[str]:
        return {*self.own.values(), *(module for module, _ in self.bound.values())}

    def names(self, node) -> set[tuple[str, str]]:
        """(module, name) of all that a definition may refer to; module "": of this file, or from elsewhere."""
        found = {("", name.id) for name in ast.walk(node) if isinstance(name, ast.Name)}
        found |= {(self.own[a.value.id], a.attr) for a in self.through_modules(node)}
        return found | {self.bound[name] for _, name in found if name in self.bound}

    def through_modules(self, node) -> list[ast.Attribute]:
        """losses.cross_entropy and its like."""
        attributes = [a for a in ast.walk(node) if isinstance(a, ast.Attribute) and isinstance(a.value, ast.Name)]
        return [a for a in attributes if a.value.id in self.own]

    def text(self, node) -> str:
        """A definition as it stands, but without the names of modules of this project before those that are in them."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        lines = self.lines[: node.end_lineno]
        for a in sorted(self.through_modules(node), key=lambda a: (a.lineno, -a.col_offset)):
            line, end = lines[a.lineno - 1], a.value.end_col_offset + 1
            lines[a.lineno - 1] = line[: a.col_offset] + line[end:]
        return b"\n".join(lines[first - 1 :]).decode()


def is_own(module: str) -> bool:
    return (ROOT / f"{module.replace('.', '/')}.py").is_file()


def flatten(start: str, keep=()) -> str:
    """
    The file of module `start`, and before it all that it needs of other files of this project, directly or not.
    keep: (module, name) of definitions that are found by a registry, not by their name. ValueError where two that are
    needed share a name.
    """
    files, waiting = {}, [start]
    while waiting:
        if (module := waiting.pop()) not in files:
            files[module] = File(module)
            waiting += files[module].modules()
    places = {module: {n for names, _ in file.parts for n in names} for module, file in files.items()}
    needed, waiting = set(), [(start, name) for name in sorted(places[start])] + list(keep)
    while waiting:
        module, name = place = waiting.pop()
        if place not in needed and name in places[module]:
            needed.add(place)
            for names, node in files[module].parts:
                if name in names:
                    waiting += [(where or module, other) for where, other in files[module].names(node)]
    order = [*TopologicalSorter({module: sorted(file.modules()) for module, file in files.items()}).static_order()]
    imports, texts, taken = {}, [], {}
    for module in order:
        file = files[module]
        for names, node in file.parts:
            if not any((module, name) in needed for name in names):
                continue
            if clash := [name for name in names if taken.setdefault(name, module) != module]:
                raise ValueError(f"{clash[0]} is in {taken[clash[0]]}.py and in {module}.py; rename one")
            texts.append((module, file.text(node), isinstance(node, ast.FunctionDef | ast.ClassDef)))
            for _, name in file.names(node):
                line = file.outside.get(name)
                if line and imports.setdefault(name, line) != line:
                    raise ValueError(f"{name} is {imports[name]!r} and {line!r} in {module}.py; rename one")
    if clash := imports.keys() & taken.keys():
        raise ValueError(f"{clash} are imported in one file and defined in another; rename them")
    lines, last = sorted(set(imports.values()), key=lambda line: (line.startswith("from"), line)), ""
    for module, text, wide in texts:
        head = f"\n\n# ---- {module.replace('.', '/')}.py\n" if module != last else ""
        lines.append(f"{head}\n\n{text}" if wide else f"{head}{text}")
        last = module
    return "\n".join(lines) + "\n"
