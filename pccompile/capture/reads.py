"""What the code of a model reads beside its arguments: attributes, globals, closures, found without running it.

The values among them are part of what a captured program was made from: when one changes, the program is stale.
"""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

__all__ = [
    "Name",
    "block_key",
    "dictionaries_of",
    "is_settled",
    "items_of",
    "modules_of",
    "names_read",
    "python_key",
    "sharing_key",
    "tensors_key",
    "values_read",
]

_LIBRARIES = frozenset(["torch", "numpy", "pccompile", *sys.stdlib_module_names]) - {"__main__"}
_MOST_FUNCTIONS, _MOST_OBJECTS = 2000, 500
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INTERNAL = frozenset(vars(nn.Module()))
_CALLABLE_TYPES = frozenset([FunctionType, MethodType, partial])


@dataclass(frozen=True, eq=False)
class Name:
    """A name that the code of a model reads outside it: a global, a class attribute, an enclosing variable.

    `owner` is the namespace, class or cell that holds it.
    """

    label: str
    owner: Any
    key: str

    def get(self) -> Any:
        """The present value; None where there is none."""
        if isinstance(self.owner, CellType):
            try:
                return self.owner.cell_contents
            except ValueError:
                return None
        return self.owner.get(self.key) if isinstance(self.owner, dict) else vars(self.owner).get(self.key)

    def put(self, value: Any) -> None:
        """Set it."""
        if isinstance(self.owner, CellType):
            self.owner.cell_contents = value
        elif isinstance(self.owner, dict):
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)

    def __str__(self) -> str:
        return self.label


def names_read(model: nn.Module, loss_fn: Any = None) -> list[Name]:
    """The names that the code of the model, its hooks and its loss may read, each once."""
    return list(_code_of(modules_of(model, loss_fn), loss_fn).names.values())


def python_key(model: nn.Module, loss_fn: Any = None) -> tuple[Any, ...]:
    """The Python values that a captured program depends on, hashable: equal keys mean that it is not stale.

    Attributes of the modules that some code of the model mentions (numbers, strings, flags, functions, plain tensors,
    containers of them), the modules' types and hooks, and the globals and closures that the code reads.
    """
    modules = modules_of(model, loss_fn)
    code = _code_of(modules, loss_fn)
    seen: set[int] = set()
    parts: list[Any] = [
        (name, type(value), value if type(value) in _PLAIN_TYPES else _value_key(value, seen))
        for name, value in _attributes_read(modules, code)
    ]
    parts += [(name.label, _value_key(name.get(), seen)) for name in code.names.values()]
    return tuple(map(type, modules)), tuple(parts), tuple(map(_Identity, _hooks(modules)))


def block_key(block: nn.Module) -> Hashable:
    """What a block computes, up to its arguments and the values of its tensors; equal blocks compute alike.

    Modules by path with their types and modes, the kinds of tensors, and the Python values that the code mentions; of
    values that may change, which object they are. None where there are hooks.
    """
    modules = modules_of(block, None)
    if any(module.__dict__[kind] for module in modules for kind in _HOOKS):
        return None
    kinds = tuple((path, type(m), m.training) for path, m in block.named_modules(remove_duplicate=False))
    values = [(name, _unchanging(value)) for name, value in _attributes_read(modules, _code_of(modules, None))]
    return kinds, tuple(tensors_key(block).items()), tuple(values)


def _unchanging(value: Any) -> Hashable:
    if isinstance(value, tuple):
        return tuple(map(_unchanging, value))
    return (type(value), value) if isinstance(value, _PLAIN) else _Identity(value)


def _attributes_read(modules: list[nn.Module], code: _Code) -> Iterator[tuple[str, Any]]:
    every, mentioned = code.any_name, code.mentioned
    for module in modules:
        for name, value in module.__dict__.items():
            if name not in _INTERNAL and (every or name in mentioned):
                yield name, value


def values_read(model: nn.Module, loss_fn: Any = None) -> list[Any]:
    """The values of the modules' attributes that some code of the model mentions."""
    modules = modules_of(model, loss_fn)
    return [value for _, value in _attributes_read(modules, _code_of(modules, loss_fn))]


def dictionaries_of(modules: list[nn.Module]) -> list[dict[Any, Any]]:
    """Every dictionary in which a module, or PyTorch for all modules, keeps attributes, tensors, children and hooks."""
    own = ("_parameters", "_buffers", "_modules", *_HOOKS)
    found = [d for module in modules for d in (module.__dict__, *(module.__dict__[name] for name in own))]
    return found + [getattr(nn.modules.module, f"_global{kind}") for kind in _HOOKS]


def is_settled(value: Any) -> bool:
    """Whether a value can change only by being replaced, as far as `python_key` looks into it."""
    if isinstance(value, tuple):
        return all(map(is_settled, value))
    return isinstance(value, (*_PLAIN, torch.Tensor, FunctionType, BuiltinFunctionType, nn.Module, ModuleType))


def tensors_key(model: nn.Module, loss_fn: Any = None) -> dict[str, tuple[Any, ...]]:
    """What of the parameters and buffers a captured program depends on, by name: their kinds, and which are tied."""
    seen: dict[int, int] = {}
    owners = [model, *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
    return {
        f"{path}.{name}" if path else name: (
            *(t.dtype, t.device, tuple(t.shape), t.requires_grad),
            seen.setdefault(id(t), len(seen)),
        )
        for owner in owners
        for path, module in owner.named_modules(prefix="loss_fn" if owner is loss_fn else "")
        for tensors in (module._parameters, module._buffers)
        for name, t in tensors.items()
        if t is not None
    }


def items_of(value: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The items of a dictionary as they are kept, past whatever a subclass does when an item is read."""
    kind = OrderedDict if isinstance(value, OrderedDict) else dict
    return ((key, dict.__getitem__(value, key)) for key in kind.__iter__(value))


def sharing_key(inputs: list[Any]) -> tuple[tuple[int, int], ...]:
    """Which of the input tensors are one and the same, and which share memory: the positions of the first of each."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    if len(tensors) < 2:
        return ()
    same: dict[int, int] = {}
    shared: dict[int, int] = {}
    return tuple((same.setdefault(id(t), i), shared.setdefault(_memory(t) or -1 - i, i)) for i, t in enumerate(tensors))


def _memory(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or a subclass without memory of its own
        return 0


class _Identity:
    """Wraps an object so that it is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


_PLAIN = (int, float, complex, bool, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.Size)

_PLAIN_TYPES = frozenset([int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size])


def _value_key(value: Any, seen: set[int], depth: int = 4) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor | FunctionType | BuiltinFunctionType):
        return _Identity(value)
    if isinstance(value, MethodType):
        return _Identity(value.__func__)
    if depth == 0 or id(value) in seen or len(seen) > _MOST_OBJECTS or isinstance(value, nn.Module | ModuleType):
        return None
    if isinstance(value, partial):
        value = value.func, value.args, value.keywords
    if isinstance(value, list | tuple | dict) and len(value) > 256:
        return len(value)
    if isinstance(value, list | tuple):
        return (type(value), *(_value_key(part, seen, depth - 1) for part in value))
    if isinstance(value, dict):
        return tuple((_value_key(k, seen, 1), _value_key(v, seen, depth - 1)) for k, v in items_of(value))
    if hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _LIBRARIES:
        seen.add(id(value))
        return tuple((k, _value_key(v, seen, depth - 1)) for k, v in vars(value).items())
    return None


# Finding the code -----------------------------------------------------------------------------------------------------


@dataclass
class _Code:
    """What some code reads: the names outside it, and every name in it (any name at all, if it uses getattr)."""

    names: dict[tuple[int, str], Name] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    any_name: bool = False

    def add(self, other: _Code) -> None:
        self.names |= other.names
        self.mentioned |= other.mentioned
        self.any_name |= other.any_name

    def and_also(self, other: _Code) -> _Code:
        both = _Code()
        both.add(self)
        both.add(other)
        return both

    def read(self, name: Name) -> None:
        self.names.setdefault((id(name.owner), name.key), name)


def _code_of(modules: list[nn.Module], loss_fn: Any) -> _Code:
    code = _code_of_classes(frozenset(map(type, modules)))
    own = [*_as_functions(loss_fn), *(function for hook in _hooks(modules) for function in _as_functions(hook))]
    for module in modules:
        for name, value in module.__dict__.items():
            if type(value) in _CALLABLE_TYPES and name not in _INTERNAL:
                own += _as_functions(value)
    own = [function for function in own if not _is_library(function.__module__ or "")]
    return code.and_also(_code_of_functions(own)) if own else code


def modules_of(model: nn.Module, loss_fn: Any) -> list[nn.Module]:
    """Every module of the model and the loss once; `modules()`, which builds the names as well, takes twice as long."""
    found: dict[int, nn.Module] = {}
    waiting = [model, *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [child for child in module._modules.values() if child is not None]
    return list(found.values())


def _hooks(modules: list[nn.Module]) -> list[Any]:
    owners: list[Any] = [module.__dict__ for module in modules]
    found = [hook for kind in _HOOKS for owner in owners if owner[kind] for hook in owner[kind].values()]
    return found + [hook for kind in _HOOKS for hook in getattr(nn.modules.module, f"_global{kind}").values()]


def _as_functions(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, MethodType | staticmethod | classmethod):
        yield from _as_functions(value.__func__)
    elif isinstance(value, property):
        yield from _as_functions(value.fget)
    elif isinstance(value, partial):
        yield from _as_functions(value.func)


@lru_cache(maxsize=256)
def _code_of_classes(classes: frozenset[type]) -> _Code:
    code = _Code()
    for cls in classes:
        for base in cls.__mro__:
            if base in (nn.Module, object):
                continue
            functions = [function for value in vars(base).values() for function in _as_functions(value)]
            if _is_library(base.__module__):
                code.mentioned.update(*(_names_in(function.__code__) for function in functions))
                continue
            code.add(_code_of_functions(functions))
            for key, value in vars(base).items():
                if key[:2] != "__" and isinstance(value, int | float | str | list | dict | set | torch.Tensor):
                    code.read(Name(f"the class attribute {base.__name__}.{key}", base, key))
    return code


def _code_of_functions(functions: Iterable[FunctionType]) -> _Code:
    """What the functions, and the user's functions that they call, read."""
    code = _Code()
    waiting, known = list(functions), set[int]()
    while waiting and len(known) < _MOST_FUNCTIONS:
        function = waiting.pop()
        if id(function) in known or _is_library(function.__module__ or ""):
            continue
        known.add(id(function))
        mentioned = _names_in(function.__code__)
        code.mentioned |= mentioned
        code.any_name |= not mentioned.isdisjoint(("getattr", "__dict__", "vars"))
        for name in _names_outside(function, mentioned):
            code.read(name)
            waiting += _as_functions(name.get())
    return code


def _names_outside(function: FunctionType, mentioned: frozenset[str]) -> Iterator[Name]:
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield Name(f"the enclosing variable {free}", cell, free)
    for key in sorted(mentioned & function.__globals__.keys()):
        yield Name(f"the global {key}", function.__globals__, key)
        value = function.__globals__[key]
        if isinstance(value, ModuleType) and not _is_library(value.__name__):
            for inner in sorted(mentioned & vars(value).keys()):
                yield Name(f"the global {key}.{inner}", vars(value), inner)


@lru_cache(maxsize=8192)
def _names_in(code: CodeType) -> frozenset[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*(_names_in(constant) for constant in inner))


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES
