"""Python state: what the forward changes is refused unless it is a cache; what changes it reads, is noticed."""

import random
from collections import OrderedDict, deque
from functools import partial

import numpy
import pytest
import torch
import torch.nn.functional as F
from agreement import Net, agree, batch, refused
from torch import nn

import pccompile
from pccompile.errors import PythonStateError

SEEN = []
SCALE = 2.0
COUNT = 0


def counts(net, hidden):
    net.count += 1  # the change
    return hidden * net.count


def appends(net, hidden):
    net.seen.append(1)  # the change
    return hidden * len(net.seen)


def records(net, hidden):
    net.last = hidden.detach()  # the change
    return hidden


def remembers(net, hidden):
    result = hidden if net.previous is None else hidden + net.previous
    net.previous = hidden.detach()  # the change
    return result


def configures(net, hidden):
    net.options["settings"].calls += 1  # the change
    return hidden * net.options["settings"].calls


def appends_globally(net, hidden):
    SEEN.append(1)  # the change
    return hidden * len(SEEN)


def counts_globally(net, hidden):
    global COUNT
    COUNT += 1  # the change
    return hidden * COUNT


class Settings:
    calls = 0


CHANGES = {
    "a counter": (counts, {"count": 0}, "the attribute count"),
    "a list": (appends, {"seen": []}, r"the attribute seen\[0\]"),
    "a deque": (appends, {"seen": deque([0])}, r"the attribute seen\[1\]"),
    "an activation kept for inspection": (records, {"last": None}, "the attribute last"),
    "a state carried over": (remembers, {"previous": None}, "the attribute previous"),
    "an object's attribute": (
        configures,
        {"options": {"settings": Settings()}},
        r"the attribute options\['settings'\]\.calls",
    ),
    "a global list": (appends_globally, {}, r"the global SEEN\[0\]"),
    "a global number": (counts_globally, {}, "the global COUNT"),
}


@pytest.mark.parametrize("capture", ["export", "symbolic"])
@pytest.mark.parametrize(("between", "attributes", "name"), CHANGES.values(), ids=CHANGES)
def test_python_state_that_the_forward_changes_is_refused_by_name_and_put_back(between, attributes, name, capture):
    model = Net(between, **attributes)
    refused(model, batch(), match=f"changes {name}", line="# the change", error=PythonStateError, capture=capture)
    assert SEEN == [] and COUNT == 0


def test_a_variable_of_an_enclosing_function_that_the_forward_changes_is_refused():
    total = 0

    def between(net, hidden):
        nonlocal total
        total += 1  # the change
        return hidden * total

    refused(Net(between), batch(), match="the enclosing variable total", line="# the change", error=PythonStateError)
    assert total == 0


def test_a_class_attribute_that_the_forward_changes_is_refused():
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            Counting.calls += 1  # the change
            return self.fc(x) * Counting.calls

    refused(Counting(), batch(), match="the class attribute Counting.calls", line="# the change")
    assert Counting.calls == 0


def test_a_change_in_a_submodule_names_its_path():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 3), Net(counts, count=0))

        def forward(self, x):
            return self.layers(x)

    assert "module:  layers.1\n" in refused(Outer(), batch(), match="the attribute count", line="# the change")


DRAWS = {
    "random.random": (lambda net, hidden: hidden * random.random(), {}, "Python's random numbers"),
    "a branch on random.random": (lambda net, h: h * 2 if random.random() < 0.5 else h, {}, "Python's random numbers"),
    "numpy.random": (lambda net, hidden: hidden * numpy.random.rand(), {}, "numpy's random numbers"),
    "a numpy generator": (
        lambda n, h: h * n.draw.random(),
        {"draw": numpy.random.default_rng(0)},
        "the attribute draw",
    ),
    "a random.Random": (lambda n, h: h * n.draw.random(), {"draw": random.Random(0)}, "the attribute draw"),
}


@pytest.mark.parametrize(("between", "attributes", "name"), DRAWS.values(), ids=DRAWS)
def test_random_numbers_that_are_not_torchs_are_refused(between, attributes, name):
    refused(Net(between, **attributes), batch(), match=f"draws from {name}[^#]*torch.rand", line="lambda")


def fills_a_dictionary(net, hidden):
    if hidden.shape[1] not in net.cache:
        net.cache[hidden.shape[1]] = torch.linspace(1, 2, hidden.shape[1])
    return hidden * net.cache[hidden.shape[1]]


def fills_an_attribute(net, hidden):
    if net.cache is None:
        net.cache = torch.arange(3.0)
    return hidden * net.cache


@pytest.mark.parametrize("between", [fills_a_dictionary, fills_an_attribute])
def test_a_cache_is_filled_once_as_the_models_first_call_would_fill_it(between):
    pc = agree(lambda: Net(between, cache={} if between is fills_a_dictionary else None), batch(), batch())
    assert pc.model.cache is not None and len(pc.model.cache)


def test_a_cache_of_something_that_is_trained_is_refused():
    def between(net, hidden):
        if net.cache is None:
            net.cache = net.fc.weight.exp()
        return hidden @ net.cache

    refused(Net(between, cache=None), batch(), match="the attribute cache", line="net.cache = net.fc.weight.exp()")


def test_a_flag_that_guards_the_first_batch_is_no_cache():
    def between(net, hidden):
        if not net.ready:
            net.mean.copy_(hidden.detach().mean(0))
            net.ready = True
        return hidden - net.mean

    model = Net(between, ready=False)
    model.register_buffer("mean", torch.zeros(3))
    refused(model, batch(), match="the attribute ready", line="net.ready = True")


# What the forward reads -----------------------------------------------------------------------------------------------


def scaled_by_a_global(net, hidden):
    return hidden * SCALE


def change_the_global(model, number):
    global SCALE
    SCALE = 2.0 + number


def changed_closure():
    scale = 2.0

    def between(net, hidden):
        return hidden * scale

    def before(model, number):
        nonlocal scale
        scale = 2.0 + number

    return between, before


def attribute(name, value):
    return lambda model, number: setattr(model, name, value(number))


def hook_later(model, number):
    if number == 1:
        model.fc.register_forward_hook(lambda module, args, output: output * 3)


def another_module(model, number):
    if number == 1:
        model.fc = nn.Sequential(model.fc, nn.Tanh())


def another_function(model, number):
    model.function = torch.tanh if number == 1 else F.relu


def by_partial(net, hidden):
    return net.scaled(hidden)


READS = {
    "an attribute": (lambda n, h: h * n.scale, {"scale": 1.0}, attribute("scale", lambda i: i + 1.0)),
    "an int that becomes a float": (
        lambda n, h: h.long() * n.s * h,
        {"s": 1},
        attribute("s", lambda i: (1, 1.0, 2)[i]),
    ),
    "a flag": (lambda n, h: h * 2 if n.double_it else h, {"double_it": True}, attribute("double_it", lambda i: i != 1)),
    "a list": (lambda n, h: h * n.scales[0], {"scales": [1.0]}, lambda m, i: m.scales.__setitem__(0, i + 1.0)),
    "a nested object": (
        lambda n, h: h * n.settings.scale,
        {"settings": type("Some", (), {})()},
        lambda m, i: setattr(m.settings, "scale", i + 1.0),
    ),
    "a function": (lambda n, h: n.function(h), {"function": F.relu}, another_function),
    "a partial": (by_partial, {}, lambda m, i: setattr(m, "scaled", partial(torch.mul, torch.tensor(i + 1.0)))),
    "a plain tensor replaced": (
        lambda n, h: h * n.plain,
        {"plain": torch.ones(3)},
        attribute("plain", lambda i: torch.full((3,), i + 1.0)),
    ),
    "a plain tensor written": (
        lambda n, h: h * n.plain,
        {"plain": torch.ones(3)},
        lambda m, i: m.plain.fill_(i + 1.0),
    ),
    "a global": (scaled_by_a_global, {}, change_the_global),
    "a closure": (*(lambda pair: (pair[0], {}, pair[1]))(changed_closure()),),
    "a getattr by a computed name": (
        lambda n, h: h * getattr(n, "sca" + "le"),
        {"scale": 1.0},
        attribute("scale", lambda i: i + 1.0),
    ),
    "a forward hook": (lambda n, h: h, {}, hook_later),
    "a module": (lambda n, h: h, {}, another_module),
}


@pytest.mark.parametrize(("between", "attributes", "before"), READS.values(), ids=READS)
def test_a_program_is_stale_when_something_that_the_forward_reads_changes(between, attributes, before):
    agree(lambda: Net(between, **attributes), *[batch()] * 3, before=before)


def test_the_rate_of_a_dropout_module_may_change():
    before = lambda model, number: setattr(model[1], "p", 0.1 + 0.3 * number)  # noqa: E731
    agree(lambda: nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 3)), *[batch()] * 3, before=before)


def test_an_attribute_that_no_code_mentions_does_not_make_a_program_stale():
    model = Net(lambda net, hidden: hidden)
    pc = pccompile.compile(model)
    pc(batch())
    program = pc.program
    model.number_of_the_epoch = 7
    pc(batch())
    assert pc.program is program


def test_training_and_evaluation_are_told_apart_module_by_module():
    def before(model, number):
        model.train(number != 1)
        model.fc.train(number == 2)

    between = lambda net, hidden: hidden * 2 if net.training else hidden * 3 if net.fc.training else hidden  # noqa: E731
    agree(lambda: Net(between), *[batch()] * 4, before=before)


class Maker(OrderedDict):
    """A registry that makes what it is asked for, as transformers' table of activations does."""

    def __getitem__(self, key):
        return super().__getitem__(key)()


MAKERS = Maker(tanh=nn.Tanh, relu=nn.ReLU)


def test_a_dictionary_that_makes_its_items_when_read_is_left_as_it_is():
    agree(lambda: Net(lambda net, hidden: MAKERS["tanh"](hidden)), batch())
    assert list(OrderedDict.__iter__(MAKERS)) == ["tanh", "relu"]
    assert dict.__getitem__(MAKERS, "tanh") is nn.Tanh
