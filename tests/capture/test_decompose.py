"""Recurrent networks, cells and attention opened into their elementary vertices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.capture.decompose import masked_softmax
from pccompile.errors import UsageError

BATCH, LENGTH, CLASSES = 4, 3, 5
EXACT_AFTER_ENOUGH_STEPS = pccompile.FixedPrediction(steps=100, step_size=1.0)


class Network(nn.Module):
    """A recurrent network whose outputs and last states all reach the loss."""

    def __init__(self, kind, **options):
        super().__init__()
        self.network = getattr(nn, kind)(3, 4, **options)
        width = options.get("proj_size", 4) * (2 if options.get("bidirectional") else 1)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x):
        if not self.network.batch_first:
            x = x.transpose(0, 1)
        outputs, last = self.network(x)
        time = 1 if self.network.batch_first else 0
        states = last if isinstance(last, tuple) else (last,)
        return self.fc(outputs.sum(time)) + sum(state.square().sum() for state in states)


class Cells(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cell = getattr(nn, kind)(3, 4, **options)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        state = None
        for t in range(LENGTH):
            state = self.cell(x[:, t], state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self, need_weights=False, causal=False, **options):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 8), nn.Linear(8, CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.need_weights = need_weights
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH) if causal else None)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        y = self.attention(
            x, x, x, need_weights=self.need_weights, attn_mask=self.mask, is_causal=self.mask is not None
        )
        return self.fc2(y[0].mean(1))


class Product(nn.Module):
    """Scaled dot-product attention by itself, with any of its options."""

    def __init__(self, mask=None, heads=2, **options):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(3, 8), nn.Linear(3, 4 * heads), nn.Linear(3, 4 * heads)
        self.fc = nn.Linear(8, CLASSES)
        self.mask, self.heads, self.options = mask, heads, options

    def forward(self, x):
        query = self.query(x).unflatten(2, (2, 4)).transpose(1, 2)
        key, value = (f(x).unflatten(2, (self.heads, 4)).transpose(1, 2) for f in (self.key, self.value))
        y = F.scaled_dot_product_attention(query, key, value, self.mask, **self.options)
        return self.fc(y.transpose(1, 2).flatten(2).mean(1))


def masked_rows():
    return torch.tensor([[True, False, False], [False, False, False], [True, True, False]])


MODELS = {
    "rnn": lambda: Network("RNN"),
    "rnn with relu, no bias": lambda: Network("RNN", nonlinearity="relu", bias=False, batch_first=True),
    "lstm of two layers with dropout": lambda: Network("LSTM", num_layers=2, dropout=0.4, batch_first=True),
    "lstm, bidirectional with projection": lambda: Network("LSTM", bidirectional=True, proj_size=2),
    "gru, bidirectional, of two layers": lambda: Network("GRU", bidirectional=True, num_layers=2, dropout=0.4),
    "rnn cell": lambda: Cells("RNNCell"),
    "rnn cell with relu": lambda: Cells("RNNCell", nonlinearity="relu"),
    "lstm cell": lambda: Cells("LSTMCell"),
    "gru cell, no bias": lambda: Cells("GRUCell", bias=False),
    "attention": lambda: Attention(dropout=0.3),
    "attention that returns its weights": lambda: Attention(need_weights=True, dropout=0.3),
    "causal attention": lambda: Attention(causal=True),
    "product, causal with dropout": lambda: Product(is_causal=True, dropout_p=0.3),
    "product with masked rows": lambda: Product(masked_rows(), scale=0.7),
    "product with an added mask": lambda: Product(torch.randn(LENGTH, LENGTH, dtype=torch.float64)),
    "product with grouped queries": lambda: Product(heads=1, enable_gqa=True),
}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    return model, torch.randn(BATCH, LENGTH, 3, dtype=torch.float64), torch.randint(CLASSES, (BATCH,))


FUSED = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
FUSED += ("scaled_dot_product_attention",)


def compiled(model, rule, **options):
    """Captured for one batch size, which is quicker."""
    return pccompile.compile(model, rule, F.cross_entropy, dynamic=False, **options)


@pytest.mark.parametrize("name", MODELS)
def test_zil_and_fixed_prediction_after_enough_steps_equal_autograd_on_the_fused_module(name):
    model, x, y = make(name)
    pc = compiled(model, pccompile.ZIL(), decompose=True)
    report = pccompile.check(pc, x, y)
    assert report.rows
    assert report.relative_error <= 1e-12, report
    assert not [v.name for v in pc.program.vertices if v.operator.partition(".")[0] in FUSED]
    pc.rule = EXACT_AFTER_ENOUGH_STEPS
    longest_path = max(v.level for v in pc.prepare(x, y).vertices if v.level is not None)
    for steps, is_enough in ((longest_path, True), (longest_path // 2, False)):
        pc.rule = pccompile.FixedPrediction(steps, step_size=1.0)
        assert (pccompile.check(pc, x, y).relative_error <= 1e-12) is is_enough


@pytest.mark.parametrize("name", ["lstm of two layers with dropout", "gru cell, no bias", "product with masked rows"])
@pytest.mark.parametrize("vertices", ["auto", "nodes"])
def test_strict_inference_lowers_the_energy_of_the_opened_graph(name, vertices):
    model, x, y = make(name)
    pc = compiled(model, pccompile.Strict(15, 0.02), vertices=vertices)
    pc.record_energies = True
    pc.loss(x, y).backward()
    assert all(after <= before for before, after in zip(pc.energies, pc.energies[1:], strict=False))
    assert pc.energies[-1] < pc.energies[0]


GATES = ("input", "recurrent", "gates", "input_gate", "forget_gate", "candidate", "output_gate")
STEP = (*GATES, "kept", "written", "cell", "squashed", "hidden")


def test_every_gate_product_and_time_step_of_an_lstm_is_a_vertex_with_a_readable_name():
    model, x, y = make("lstm of two layers with dropout")
    pc = compiled(model, EXACT_AFTER_ENOUGH_STEPS)
    pc.prepare(x, y)
    hidden = {v.name: v for v in pc.program.vertices if v.kind.value == "hidden"}
    expected = {f"network.l{layer}.{part}@{t}" for layer in (0, 1) for part in STEP for t in range(LENGTH)}
    expected -= {f"network.l{layer}.recurrent@0" for layer in (0, 1)}  # of the initial state alone: no vertex
    expected |= {f"network.l0.dropped@{t}" for t in range(LENGTH)}
    assert {name for name in hidden if name.startswith("network.")} == expected
    assert "self.network(x)" in hidden["network.l1.forget_gate@2"].source


def test_levels_follow_the_two_branches_into_each_product_of_the_cell():
    model, x, y = make("lstm cell")
    pc = compiled(model, EXACT_AFTER_ENOUGH_STEPS)
    pc.prepare(x, y)
    level = {part: pc.program.vertex(f"cell@2.{part}").level for part in STEP}
    top = level["hidden"]
    # hidden = output_gate * tanh(cell), cell = forget_gate * c + input_gate * candidate
    assert level["output_gate"] == level["squashed"] == top + 1
    assert level["cell"] == top + 2
    assert level["kept"] == level["written"] == top + 3
    assert level["input_gate"] == level["forget_gate"] == level["candidate"] == top + 4
    assert level["gates"] == top + 5
    assert level["input"] == level["recurrent"] == top + 6
    children = {child.name for child in pc.program.children("cell@1.cell")}
    assert children == {"cell@1.squashed", "cell@2.kept"}


def gates(rule, **options):
    """The vertices that are gates."""
    model, x, y = make("lstm cell")
    pc = compiled(model, rule, **options)
    pc.prepare(x, y)
    return [vertex.name for vertex in pc.program.vertices if vertex.operator == "sigmoid.default"]


def test_modules_stay_fused_where_the_result_does_not_depend_on_it_and_open_where_it_does_or_the_user_asks():
    zil, strict = pccompile.ZIL(), pccompile.Strict()
    assert not gates(zil)
    assert gates(zil, decompose=True) == gates(strict) == gates(strict, vertices="layers", decompose=True)
    assert len(gates(strict)) == 3 * LENGTH
    for fused in ({"decompose": False}, {"vertices": "layers"}, {"vertices": ["cell"]}):
        assert not gates(strict, **fused)


def test_one_module_keeps_both_forms_as_its_rule_changes():
    model, x, y = make("lstm cell")
    pc = compiled(model, pccompile.ZIL())
    assert pccompile.check(pc, x, y).bit_equal
    fused = pc.program
    pc.rule = EXACT_AFTER_ENOUGH_STEPS
    assert pccompile.check(pc, x, y).relative_error <= 1e-12
    assert len(pc.program.graph) > len(fused.graph)
    pc.rule = pccompile.ZIL()
    pc.loss(x, y)
    assert pc.program is fused


def test_what_only_moves_opened_values_is_no_vertex_of_its_own():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    pc = compiled(Last(), pccompile.Strict())
    pc.prepare(torch.randn(BATCH, LENGTH, 3), torch.randint(CLASSES, (BATCH,)))
    moves = [v.name for v in pc.program.vertices if v.kind.value == "hidden" and v.operator in ("stack", "select")]
    assert not moves
    assert "lstm.l0.hidden@2" in {parent.name for parent in pc.program.parents("fc")}


def test_dropout_between_layers_draws_the_masks_of_eager_mode():
    model, x, _ = make("gru, bidirectional, of two layers")
    pc = pccompile.compile(model, decompose=True, dynamic=False)
    torch.manual_seed(5)
    ours = pc(x)
    torch.manual_seed(5)
    torch.testing.assert_close(ours, model(x), rtol=1e-12, atol=1e-13)
    torch.manual_seed(6)
    assert not torch.allclose(ours, pc(x))


def test_a_row_that_is_masked_entirely_attends_to_nothing():
    weights = masked_softmax(torch.randn(3, 3), masked_rows())
    assert torch.equal(weights[1], torch.zeros(3))
    torch.testing.assert_close(weights[[0, 2]].sum(1), torch.ones(2))


def test_opening_what_is_traced_symbolically_is_refused():
    for options in ({"decompose": "yes"}, {"decompose": True, "capture": "symbolic"}):
        with pytest.raises(UsageError, match="decompose"):
            pccompile.compile(Network("RNN"), **options)
    assert pccompile.compile(Network("RNN"), EXACT_AFTER_ENOUGH_STEPS, capture="symbolic").decompose == "auto"


class Stacked(nn.Module):
    """A network on top of another, and attention whose sizes are all the input's."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.lstm, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        x = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return self.fc(self.lstm(self.gru(x)[0])[0][:, -1])


def test_a_new_batch_size_keeps_the_opened_graph_and_a_new_number_of_time_steps_opens_another():
    pc = pccompile.compile(Stacked().double(), EXACT_AFTER_ENOUGH_STEPS, F.cross_entropy)
    programs = []
    for batch, length in ((4, 3), (6, 3), (6, 2)):
        x, y = torch.randn(batch, length, 3, dtype=torch.float64), torch.randint(CLASSES, (batch,))
        assert pccompile.check(pc, x, y).relative_error <= 1e-12
        programs.append(pc.program)
    assert programs[0] is programs[1]
    assert "lstm.l0.hidden@2" not in programs[2].graph
