"""A stand-in for CUDA graphs on the CPU: replaying runs the function again and writes into its first outputs."""

import torch


class EmulatedRecorder:
    """Records what `pccompile.backends.cudagraph.CudaRecorder` would, for tensors on the CPU."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def record(self, function, inputs):
        self.recordings += 1
        # recording runs nothing: it may write into copies only
        outputs = tuple(map(_poisoned, function([t.clone() if isinstance(t, torch.Tensor) else t for t in inputs])))

        def replay() -> None:
            self.replays += 1
            for output, value in zip(outputs, function(list(inputs)), strict=True):
                if isinstance(output, torch.Tensor) and output is not value:
                    output.copy_(value)

        return replay, outputs


def _poisoned(value):
    """A tensor whose contents nobody may read before a replay."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.full_like(value, torch.nan if value.is_floating_point() else 0)
