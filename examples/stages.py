"""One small MLP at every stage of the compile."""

from itertools import pairwise

import torch
from torch import nn

import pccompile


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 256), nn.Linear(256, 10)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


if __name__ == "__main__":
    program = pccompile.compile(MLP(), example_inputs=torch.randn(64, 784)).program
    stages = list(program.stages.values())
    print(stages[0])
    for before, after in pairwise(stages):
        print(f"\n{after.name}: {after.why}")
        print("\n".join(program.diff(before.name, after.name).splitlines()[2:]) or "(nothing to do here)")
    print(f"\n{program}\n\n{program.code}", end="")
