"""What is recorded as a CUDA graph: right for other inputs, at other addresses, with other numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from emulated_graphs import EmulatedRecorder
from torch import nn

import pccompile
from pccompile.backends import aten
from pccompile.backends.cudagraph import Replayed, copies
from pccompile.errors import UsageError


def scaled_product(given):
    weight, x, scale = given
    given.clear()
    return weight @ x * scale, x.sum()


@pytest.fixture
def recorder():
    return EmulatedRecorder()


def called(replayed, *inputs):
    return [output.clone() for output in replayed(list(inputs))]


def test_batches_that_move_are_copied_and_parameters_are_read_where_they_are(recorder):
    replayed, weight = Replayed(scaled_product, recorder), torch.randn(3, 4)
    batches = [torch.randn(4, 2) for _ in range(8)]  # kept, so that their addresses differ
    for number, x in enumerate(batches):
        weight += 1.0  # an optimizer's step
        product, total = called(replayed, weight, x, 2.0)
        torch.testing.assert_close(product, weight @ x * 2.0)
        torch.testing.assert_close(total, x.sum())
        assert recorder.replays == max(number - 1, 0)
    assert recorder.recordings == 1


def test_a_parameter_that_moves_is_recorded_again_once(recorder):
    replayed, batches = Replayed(scaled_product, recorder), [torch.randn(4, 2) for _ in range(10)]
    weights = [torch.randn(3, 4) for _ in range(3)]
    for number, x in enumerate(batches):
        weight = weights[0 if number < 5 else 1 + number % 2]
        torch.testing.assert_close(called(replayed, weight, x, 2.0)[0], weight @ x * 2.0)
    assert recorder.recordings == 2


def test_a_number_that_changes_is_recorded_again_and_at_last_not_recorded_at_all(recorder):
    replayed, weight, x = Replayed(scaled_product, recorder), torch.randn(3, 4), torch.randn(4, 2)
    for number in range(30):
        torch.testing.assert_close(called(replayed, weight, x, float(number))[0], weight @ x * number)
    assert 1 < recorder.recordings < 12


def test_a_call_empties_its_inputs(recorder):
    replayed, weight, x = Replayed(scaled_product, recorder), torch.randn(3, 4), torch.randn(4, 2)
    for _ in range(4):
        given = [weight, x, 1.0]
        replayed(given)
        assert given == []


def test_copies_keep_contents_and_strides():
    tensors = [torch.randn(3, 4).mT, torch.randn(5), torch.randn(())]
    for tensor, copied in zip(tensors, copies(tensors), strict=True):
        assert torch.equal(tensor, copied) and tensor.stride() == copied.stride()
        assert tensor.data_ptr() != copied.data_ptr()
    assert copies([]) == []


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


RULES = {
    "zil": pccompile.ZIL(),
    "fixed prediction": pccompile.FixedPrediction(steps=5, step_size=0.3),
    "strict": pccompile.Strict(steps=4, step_size=0.1),
    "momentum": pccompile.Strict(steps=4, step_size=0.1, optimizer="momentum"),
}


@pytest.fixture
def recorders(monkeypatch):
    """The emulated recorders of everything that runs on the CPU."""
    made = []

    def recorder_of(devices):
        made.append(EmulatedRecorder())
        return made[-1]

    monkeypatch.setattr(aten, "recorder_of", recorder_of)
    return made


def pair(rule, dropout=0.0, **options):
    """The same model twice, recorded and not."""
    model = Net(dropout).double()
    compiled = [
        pccompile.compile(m, rule, F.cross_entropy, dynamic=False, cuda_graph=g, **options)
        for m, g in ((model, True), (copy.deepcopy(model), False))
    ]
    return compiled, [torch.optim.SGD(pc.parameters(), lr=0.1, momentum=0.9) for pc in compiled]


def batches(count):
    return [(torch.randn(5, 6).double(), torch.randint(3, (5,))) for _ in range(count)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_training_is_the_same_when_recorded(recorders, rule):
    (recorded, plain), optimizers = pair(rule)
    losses = []
    for x, y in batches(8):
        for pc, optimizer in zip((recorded, plain), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(pc.loss(x, y))
            losses[-1].backward()
            optimizer.step()
    for one, other in zip(losses[::2], losses[1::2], strict=True):  # kept: a later step must not have written into them
        torch.testing.assert_close(one, other)
    for (name, one), other in zip(recorded.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    assert recorders[0].replays >= 10 and recorders[0].recordings <= 6


def test_two_steps_at_once_do_not_share_what_was_recorded(recorders):
    (recorded, plain), _ = pair(pccompile.ZIL())
    for pairs in zip(batches(5), batches(5), strict=True):
        for pc in (recorded, plain):
            pc.zero_grad()
            first, second = (pc.loss(x, y) for x, y in pairs)
            first.backward()
            second.backward()
        for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    assert recorders[0].replays > 0


def test_gradients_accumulate_and_stay_what_they_were(recorders):
    (recorded, plain), _ = pair(pccompile.ZIL())
    found = {pc: [] for pc in (recorded, plain)}
    for x, y in batches(5):
        for pc in found:
            loss = pc.loss(x, y)
            found[pc].append(torch.autograd.grad(loss, list(pc.parameters()), retain_graph=True))
            found[pc].append(torch.autograd.grad(loss, list(pc.parameters()), retain_graph=True))
            loss.backward()
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for ones, others in zip(found[recorded], found[plain], strict=True):
        torch.testing.assert_close(ones, others)


def test_dropout_draws_anew_in_every_replay(recorders):
    (recorded, _), _ = pair(pccompile.ZIL(), dropout=0.5)
    x, y = batches(1)[0]
    losses = {recorded.loss(x, y).item() for _ in range(6)}
    assert len(losses) == 6 and recorders[0].replays


def test_new_numbers_of_the_rule_are_recorded(recorders):
    (recorded, plain), _ = pair(pccompile.Strict(steps=3, step_size=0.1))
    for number, (x, y) in enumerate(batches(8)):
        for pc in (recorded, plain):
            pc.rule = pccompile.Strict(steps=3 + number // 4, step_size=0.1 / (1 + number // 6))
            pc.zero_grad()
            pc.loss(x, y).backward()
        for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_what_cannot_be_recorded_is_refused_on_request_only():
    x, y = batches(1)[0]
    pc = pccompile.compile(Net().double(), loss_fn=F.cross_entropy, cuda_graph=True)
    with pytest.raises(UsageError, match="not everything is on one GPU"):
        pc.loss(x, y)
    pccompile.compile(Net().double(), loss_fn=F.cross_entropy, cuda_graph="auto").loss(x, y).backward()
    with pytest.raises(UsageError, match="cuda_graph='maybe'"):
        pccompile.compile(Net(), cuda_graph="maybe")


def test_reading_energies_leaves_the_steps_unrecorded(recorders):
    x, y = batches(1)[0]
    pc = pccompile.compile(Net().double(), pccompile.Strict(steps=3), F.cross_entropy)
    pc.record_energies = True
    for _ in range(4):
        pc.loss(x, y).backward()
    assert len(pc.energies) == 4 and not recorders[0].replays
    pc.cuda_graph = True
    with pytest.raises(UsageError, match="reads its energy"):
        pc.loss(x, y)
