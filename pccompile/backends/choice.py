"""Whether a kernel takes the place of operators: if it can run, and if it was measured to be no slower."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from pccompile import cache
from pccompile.backends.cudagraph import CudaRecorder
from pccompile.backends.executables import Compile, as_it_is
from pccompile.errors import UsageError
from pccompile.ir.grammar import Span
from pccompile.lowering.expand import FlatPiece
from pccompile.lowering.regions import region, signature
from pccompile.lowering.symbols import Boxed

if TYPE_CHECKING:
    from pccompile.backends.patterns import Match

__all__ = [
    "Choose",
    "by_measurement",
    "is_faster",
    "is_measured",
    "is_on_gpu",
    "objection",
    "objection_to",
    "random_like",
    "seconds_of",
]

logger = logging.getLogger("pccompile")

Choose = Callable[..., tuple[bool, str]]  # of a match, or of several that are taken together

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WARM_UPS, _REPETITIONS, _CALLS = 3, 9, 10


def by_measurement(rest: Compile) -> Choose:
    """Choose kernels that can run and that were faster than what `rest` makes of the nodes they replace.

    `PCCOMPILE_KERNELS=always` takes every kernel that can run, as the interpreter's tests do, where time means nothing.

    Raises:
        UsageError: PCCOMPILE_KERNELS is neither "measured" nor "always".
    """
    measured = is_measured()

    def choose(*matches: Match) -> tuple[bool, str]:
        problem = next(filter(None, map(objection, matches)), "")
        if problem:
            return False, problem
        if not measured or not all(is_on_gpu(_tensors(match)) for match in matches):
            return True, "not measured"
        return _faster(matches, rest)

    return choose


def is_measured() -> bool:
    """Whether kernels are chosen by measurement; else all that can run are taken.

    Raises:
        UsageError: PCCOMPILE_KERNELS is neither "measured" nor "always".
    """
    setting = os.environ.get("PCCOMPILE_KERNELS", "measured")
    if setting not in ("measured", "always"):
        raise UsageError(f"PCCOMPILE_KERNELS={setting}", cure='set it to "measured" or "always"')
    return setting == "measured"


def objection(match: Match) -> str:
    """Why a kernel cannot run; "" if it can."""
    return objection_to(_tensors(match), _tensors(match, match.statistics))


def objection_to(kinds: Sequence[torch.Tensor], computed: Sequence[torch.Tensor]) -> str:
    """Why no kernel takes tensors of these kinds together, and computes with some of them; "" if one can."""
    from pccompile.kernels.devices import interpreted

    devices = {kind.device.type for kind in kinds}
    dtypes = {kind.dtype for kind in computed if kind.is_floating_point() or kind.is_complex()}
    if devices != {"cuda"} and not (interpreted() and devices == {"cpu"}):
        return "no GPU"
    if len(dtypes) > 1:
        return f"{' and '.join(sorted(map(_name, dtypes)))} together have no kernel"
    unknown = [_name(dtype) for dtype in dtypes if dtype not in _DTYPES]
    return f"{unknown[0]} has no kernel" if unknown else ""


def is_on_gpu(kinds: Iterable[Any]) -> bool:
    """Whether the tensors among these are all on a GPU, where times mean something."""
    return all(kind.is_cuda for kind in kinds if isinstance(kind, torch.Tensor))


def _tensors(match: Match, beside: Sequence[fx.Node] = ()) -> list[torch.Tensor]:
    found = (match.kind(node) for node in match.inputs if node not in beside)
    return [kind for kind in found if isinstance(kind, torch.Tensor)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Measuring ------------------------------------------------------------------------------------------------------------


def _faster(matches: Sequence[Match], rest: Compile) -> tuple[bool, str]:
    """Whether kernels take no longer than operators, all together."""
    total = {"kernel": 0.0, "operators": 0.0}
    for match in matches:
        seconds = _timed(match.kernel, _call_of(match), _graph_of(match), rest, None)
        if isinstance(seconds, str):
            return False, seconds
        total = {name: total[name] + seconds[name] for name in total}
    return _told(total)


def is_faster(name: str, kernel: fx.Graph, operators: fx.Graph | Callable[[], Any], rest: Compile) -> tuple[bool, str]:
    """Whether a graph with calls of a kernel takes no longer than one without, the operators of both run by `rest`.

    Args:
        operators: the one without; or, where there is no such graph, what does the same when it is called.
    """
    seconds = _timed(name, kernel, operators, rest, rest)
    return (False, seconds) if isinstance(seconds, str) else _told(seconds)


def _told(seconds: dict[str, float]) -> tuple[bool, str]:
    told = ", ".join(f"{name} {1e6 * value:.3g} us" for name, value in seconds.items())
    return seconds["kernel"] <= seconds["operators"], told


def _timed(
    name: str,
    kernel: fx.Graph,
    operators: fx.Graph | Callable[[], Any],
    rest: Compile,
    beside: Compile | None,
) -> dict[str, float] | str:
    """Time a kernel and operators on tensors of their inputs' kinds, or look up what was found before; or what failed.

    Args:
        name: the kernel's.
        rest: what runs the operators.
        beside: what runs those beside the kernel; None where there are none.
    """
    from pccompile.kernels.fingerprint import fingerprint

    is_graph = isinstance(operators, fx.Graph)
    replaced = signature(operators) if is_graph else "called"
    key = cache.digest("kernel", rest.__name__, fingerprint(), replaced, signature(kernel))
    seconds = cache.load(key)
    if not isinstance(seconds, dict) or set(seconds) != {"kernel", "operators"}:
        try:
            seconds = {
                "kernel": seconds_of(kernel, beside),
                "operators": seconds_of(operators, rest) if is_graph else _seconds_of_call(operators),
            }
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever goes wrong inside Triton or its compiler, the operators can run
            logger.warning("%s cannot run, operators do: %s: %s", name, type(error).__name__, error)
            return f"{name} fails: {type(error).__name__}"
        cache.store(key, seconds)
    return seconds


def _graph_of(match: Match) -> fx.Graph:
    replaced = set(match.replaced)
    return region([node for node in match.replaced[0].graph.nodes if node in replaced]).graph


def _call_of(match: Match) -> fx.Graph:
    graph, places = fx.Graph(), {}
    for position, node in enumerate(match.inputs):
        places[node] = graph.placeholder(f"input_{position}")
        places[node].meta = {**node.meta, "val": match.kind(node)}
    graph.output(tuple(match.write(graph, places.__getitem__)))
    return graph


def seconds_of(graph: fx.Graph, rest: Compile | None) -> float:
    """The median time of a graph's run on a GPU, on random tensors, by CUDA events.

    Launches are recorded and replayed, as those of a step are: what the host takes for them does not count.

    Args:
        rest: makes it ready; None for a graph that calls a kernel.
    """
    graph.set_codegen(Boxed())
    placeholders = graph.find_nodes(op="placeholder")
    piece = FlatPiece(
        "measured",
        Span.steps(0, 1),
        False,
        graph,
        tuple(node.target for node in placeholders),
        tuple(node.name for node in graph.output_node().args[0]),
        (),
        {},
        False,
    )
    call = (rest or as_it_is)(piece).call
    inputs = [random_like(node.meta["val"]) for node in placeholders]
    (device,) = {value.device for value in inputs if isinstance(value, torch.Tensor)}

    def calls(given: list[Any]) -> tuple[()]:
        for _ in range(_CALLS):
            call(list(given))
        return ()

    with torch.cuda.device(device), torch._C._AutoDispatchBelowAutograd():
        for _ in range(_WARM_UPS):
            calls(inputs)
        replay, _ = CudaRecorder(device).record(calls, inputs)
        return statistics.median(_seconds(replay) for _ in range(_REPETITIONS)) / _CALLS


def _seconds_of_call(call: Callable[[], Any]) -> float:
    """The median time of a call on the present GPU, by CUDA events; it is not recorded."""

    def calls() -> None:
        for _ in range(_CALLS):
            call()

    for _ in range(_WARM_UPS):
        calls()
    return statistics.median(_seconds(calls) for _ in range(_REPETITIONS)) / _CALLS


def _seconds(replay: Callable[[], None]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def random_like(kind: Any) -> Any:
    """A tensor of this kind, or the number itself; elements that share memory are drawn once."""
    if not isinstance(kind, torch.Tensor):
        return kind
    size = 1 + sum((n - 1) * stride for n, stride in zip(kind.shape, kind.stride(), strict=True)) if kind.numel() else 0
    drawn = torch.rand(size, device=kind.device, generator=torch.Generator(kind.device).manual_seed(0))
    return drawn.to(kind.dtype).as_strided(kind.shape, kind.stride())
