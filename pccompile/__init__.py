"""pccompile: the predictive-coding compiler for PyTorch.

The flow, and the file for each arrow:

    model, loss  --capture-->   FX graph          capture/     torch.export, symbolic_trace, a GraphModule
                 --build-->     graph             build.py     edges and levels; vertices.py says what is a vertex
                 --rule-->      literal Program   rules.py     every update of every vertex, with its range of steps
                 --passes-->    Program           passes/      small pure functions, verified after each (ir/check.py)
                 --lower-->     torch.fx graphs   lowering/    a prediction sweep and an error sweep
                 --back end-->  gradients         backends/    on derivatives.py (local) and updates.py
                 --module-->    nn.Module         module.py    shares the model's parameters; ordinary training loop

    pc = pccompile.compile(model)
    loss = F.cross_entropy(pc(x), y); loss.backward(); optimizer.step()
    print(pc.program)
"""

from pccompile.api import compile
from pccompile.check import Report, check
from pccompile.errors import PCCompileError
from pccompile.inspection.recording import Recording, record
from pccompile.ir.grammar import Program
from pccompile.module import PCModule
from pccompile.rules import ZIL, FixedPrediction, Incremental, Strict

__all__ = [
    "ZIL",
    "FixedPrediction",
    "Incremental",
    "PCCompileError",
    "PCModule",
    "Program",
    "Recording",
    "Report",
    "Strict",
    "check",
    "compile",
    "record",
]

__version__ = "0.1.0"
