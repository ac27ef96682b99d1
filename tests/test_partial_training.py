"""What is not trained costs nothing: frozen layers, adapters, and part of a larger model compiled by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import AtenBackend
from pccompile.ir.grammar import Action


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it (Hu et al. 2022, arXiv:2106.09685)."""

    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def deep(width=6, depth=5):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def batch(width=6):
    return torch.randn(4, width), torch.randint(0, 3, (4,))


def with_errors(program):
    """The vertices whose error the program computes."""
    actions = (Action.COMPARE, Action.RELAX, Action.INFER)
    return {update.vertex for update in program.schedule if update.action in actions}


def learners(program):
    return {update.vertex for update in program.schedule if update.action is Action.LEARN}


RULES = [pccompile.ZIL(), pccompile.FixedPrediction(steps=8, step_size=0.5)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_layers_below_the_last_trained_one_have_no_error_and_do_not_learn(rule):
    model = deep()
    for parameter in model[:6].parameters():  # three linear layers and their tanh
        parameter.requires_grad_(False)
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, vertices="nodes")
    program = pc.prepare(*batch())
    assert learners(program) == {"6", "8", "10"}
    assert not with_errors(program) & {"0", "1", "2", "3", "4", "5"}
    assert {"6", "7", "8", "9", "10"} & with_errors(program)


def test_under_strict_inference_a_frozen_layer_keeps_its_belief_and_learns_nothing():
    """Its value moves all the same, and the layer above learns from where it is."""
    model = deep()
    model[:6].requires_grad_(False)
    pc = pccompile.compile(model, pccompile.Strict(steps=6, step_size=0.1), loss_fn=F.cross_entropy, vertices="nodes")
    program = pc.prepare(*batch())
    assert learners(program) == {"6", "8", "10"}
    assert with_errors(program) == {str(number) for number in range(11)}


def test_a_frozen_layer_between_trained_ones_passes_its_error_on_and_does_not_learn():
    model = deep()
    model[4].requires_grad_(False)
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    program = pc.prepare(*batch())
    assert "4" in with_errors(program)
    assert learners(program) == {"0", "2", "6", "8", "10"}
    assert pccompile.check(pc, *batch()).bit_equal
    assert all(parameter.grad is None for parameter in model[4].parameters())


def test_a_frozen_trunk_makes_the_error_sweep_shorter_update_by_update():
    model, (x, y) = deep(), batch()
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    whole = len(pc.prepare(x, y).schedule)
    lengths = []
    for layer in (model[0], model[2], model[4]):
        layer.requires_grad_(False)
        lengths.append(len(pc.prepare(x, y).schedule))
    # each step takes away the frozen layer's Learn, its error, and that of the tanh after it
    assert [whole - lengths[0], lengths[0] - lengths[1], lengths[1] - lengths[2]] == [3, 3, 3]


def test_freezing_after_compilation_is_noticed_and_undone():
    model, (x, y) = deep(), batch()
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    pc.loss(x, y).backward()
    model.zero_grad(set_to_none=True)
    model[2].weight.requires_grad_(False)
    pc.loss(x, y).backward()
    assert model[2].weight.grad is None
    assert model[2].bias.grad is not None
    model[2].weight.requires_grad_(True)
    assert pccompile.check(pc, x, y).bit_equal
    assert any(row.name == "2.weight" for row in pccompile.check(pc, x, y).rows)


@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_low_rank_adapters_learn_and_the_layers_they_adapt_do_not(backend):
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(nn.Linear(6, 6), 2), nn.ReLU(), Adapted(nn.Linear(6, 3), 2))
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, backend=backend)
    x, y = batch()
    report = pccompile.check(pc, x, y)
    assert report.bit_equal
    assert {row.name for row in report.rows} == {"0.down.weight", "0.up.weight", "2.down.weight", "2.up.weight"}
    assert not {name for name in learners(pc.program) if name.endswith("layer")}
    frozen = [parameter.clone() for parameter in model.parameters() if not parameter.requires_grad]
    optimizer = torch.optim.Adam([p for p in pc.parameters() if p.requires_grad], lr=0.05)
    first = pc.step(x, y, optimizer)
    for _ in range(30):
        last = pc.step(x, y, optimizer)
    assert last < first / 2
    after = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_part_of_a_model_is_compiled_alone_and_the_rest_learns_by_autograd():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = deep(), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(torch.relu(self.encoder(x)))

    torch.manual_seed(0)
    model, (x, y) = Whole(), batch()
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    names = list(model.state_dict())
    model.encoder = pccompile.compile(model.encoder)
    assert list(model.state_dict()) == names
    F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_nothing_to_train_is_the_plain_model():
    model = deep().requires_grad_(False)
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    x, y = batch()
    loss = pc.loss(x, y)
    assert not loss.requires_grad
    assert torch.equal(loss, F.cross_entropy(model(x), y))


def test_nothing_to_train_is_the_plain_model_though_its_program_was_asked_for(monkeypatch):
    model, (x, y) = deep().requires_grad_(False), batch()
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    assert not learners(pc.prepare(x, y))
    monkeypatch.setattr(AtenBackend, "feed_forward", lambda *_: pytest.fail("the program ran"))
    assert torch.equal(pc.loss(x, y), F.cross_entropy(model(x), y))
