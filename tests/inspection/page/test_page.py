"""The page in a real browser: it loads, runs the schedule, folds, finds, and shows what the passes did."""

import dataclasses
import json
import re

import networkx as nx
import pytest
from generated import graph_of
from shown_programs import MODELS, program_of, recorded

import pccompile
from pccompile.inspection.modules import grouping, view
from pccompile.inspection.timeline import timeline
from pccompile.ir import Action, Kind
from pccompile.passes import run
from pccompile.rules import ZIL, literal_program

NASTY = "<img src=x onerror=document.title='broken'>"

LEARNING = "JSON.parse(document.querySelector('#learning')?.dataset.parameters ?? '[]')"


def names(page, selector: str) -> set[str]:
    return set(page.eval_on_selector_all(selector, "found => found.map(node => node.dataset.name)"))


def go_to(page, step: int) -> None:
    page.evaluate(
        "step => { const s = document.querySelector('#slider'); s.value = step; s.dispatchEvent(new Event('input')); }",
        step,
    )


def open_all(page) -> None:
    page.click("#open")
    page.wait_for_function("document.querySelectorAll('#graph g.node.folded').length === 0")
    page.wait_for_timeout(300)


def learning(program, step: int) -> list[str]:
    """The parameters learned in a step, by the schedule itself."""
    found = []
    for update in sorted(program.schedule, key=lambda update: program.vertex(update.vertex).order):
        if update.action is Action.LEARN and update.span.start.at(0) <= step < update.span.stop.at(0):
            found += [parent.name for parent in program.learned(update.vertex)]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_page_loads_in_silence_and_shows_the_view(name, show):
    program = program_of(name)
    page = show(program)
    assert page.said == []
    page.click("#fit")
    page.wait_for_timeout(400)
    assert names(page, "#graph g.node") == {node.name for node in view(program).nodes}


@pytest.mark.parametrize("name", MODELS)
def test_the_slider_moves_the_wavefront_and_the_parameters_that_learn(name, show):
    program = program_of(name)
    times = timeline(program, 0)
    page = show(program)
    open_all(page)
    steps = range(times.length) if times.length < 20 else range(0, times.length, times.length // 16)
    learned = 0
    for step in steps:
        go_to(page, step)
        expected = learning(program, step)
        learned += len(expected)
        shown = page.evaluate(LEARNING)
        assert sorted(shown) == sorted(expected)
        learners = {u.vertex for u in program.schedule if u.action is Action.LEARN and times.runs[u][0] == step}
        assert names(page, "#graph g.node.learns") == learners
        errors = {vertex for vertex, (first, until) in times.errors.items() if first <= step < until}
        assert names(page, "#graph g.node.errs") == errors
        predicting = {u.vertex for u in program.schedule if u.action is Action.PREDICT and step < times.runs[u][1]}
        boxes = {node.name for node in view(program, "all").nodes}
        assert names(page, "#graph g.node.predicts") == predicting & boxes
    assert learned > 3
    assert page.said == []


def test_errors_travel_along_edges_towards_the_input(show):
    page = show(program_of("mnist"))
    for step, path in ((0, 1), (4, 1), (10, 0)):
        go_to(page, step)
        assert page.locator("#graph path.edge.travels").count() == path


def test_modules_fold_and_unfold_in_the_graph_and_in_the_schedule(show):
    page = show(program_of("resnet18"))
    page.click("#fold")
    page.wait_for_function("document.querySelectorAll('#graph g.node').length === 13")
    page.locator('g.node[data-name="layer3/"] .unfold').click()
    page.wait_for_selector('g.node[data-name="layer3.1/"]')
    page.locator('g.node[data-name="layer3.1/"]').dblclick(position={"x": 20, "y": 20})
    page.wait_for_selector('g.node[data-name="layer3.1.conv1"]')
    assert page.locator('g.node[data-name="layer2.0.conv1"]').count() == 0
    page.locator('g[data-group="layer3.1"]').click()
    page.wait_for_selector('g.node[data-name="layer3.1/"]')
    assert page.locator('g.node[data-name="layer3.1.conv1"]').count() == 0


def test_search_finds_opens_and_selects(show):
    page = show(program_of("resnet18"))
    page.click("#fold")
    page.keyboard.press("/")
    page.keyboard.type("layer2.1 conv2")
    assert page.locator("#results li .name").all_inner_texts()[0] == "layer2.1.conv2"
    page.keyboard.press("Enter")
    page.wait_for_selector('g.node.selected[data-name="layer2.1.conv2"]')
    level = program_of("resnet18").vertex("layer2.1.conv2").level
    assert f"learns layer2.1.conv2.weight in step {level}." in page.inner_text("#panel .when")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.fill("#search", "delay")
    assert "layer1.0.relu@1.delay_1" in page.locator("#results li .name").all_inner_texts()
    page.fill("#search", "no such vertex")
    assert page.inner_text("#results") == "no vertex matches"


def test_a_hidden_parameter_is_found_and_shown(show):
    page = show(program_of("mnist"))
    page.fill("#search", "fc2.weight")
    page.keyboard.press("Enter")
    page.wait_for_selector('g.node.selected[data-name="fc2.weight"]')
    assert page.is_checked("#parameters")


def test_the_stage_switch_shows_what_each_pass_did(show):
    program = program_of("resnet18")
    page = show(program)
    delays = {v.name for v in program.stages["level"].vertices if v.kind is Kind.DELAY}
    buttons = page.locator("#stages button").all()
    assert [button.get_attribute("data-stage") for button in buttons] == list(program.stages)
    assert page.inner_text("#change") == f"Removed {len(delays)} delay vertices."
    page.click('[data-stage="level"]')
    page.wait_for_selector("body[data-stage=level]")
    assert page.inner_text("#change") == f"Added {len(delays)} delay vertices."
    assert f"Delay vertices in this stage ({len(delays)})" in page.inner_text("#panel")
    page.wait_for_selector('g.node[data-name="maxpool.delays/"]')
    page.click('[data-stage="reuse"]')
    before, after = program.stages["liveness"], program.stages["reuse"]
    changed = sum(before.updates[key] != after.updates.get(key) for key in before.updates)
    assert page.inner_text("#change") == f"Shortened {changed} updates."
    page.keyboard.press("[")
    page.wait_for_selector("body[data-stage=liveness]")
    assert page.said == []


def test_the_panel_tells_shape_source_neighbours_updates_history_and_code(show):
    program = program_of("mnist")
    page = show(program)
    page.locator('g.node[data-name="conv2"]').click()
    text = page.inner_text("#panel")
    vertex = program.vertex("conv2")
    for part in ("f32[4, 5, 11, 11]", vertex.source, "conv2d.default", f"level\n{vertex.level}", "pool", "relu2"):
        assert part in text
    assert "learns conv2.weight, conv2.bias in step 7." in text
    for stage in ("zero errors", "liveness", "reuse", "error state"):
        assert f"{stage}: " in text
    assert "conv2_error = relax(None, 1.0, relu2_to_conv2)" in text
    page.locator("#panel .link", has_text="relu2").first.click()
    assert page.inner_text("#panel h2 .name") == "relu2"


def test_the_schedule_chart_selects_and_moves_time(show):
    page = show(program_of("mnist"))
    box = page.locator("#scroll").bounding_box()
    page.mouse.click(box["x"] + 10, box["y"] + 20 + 17 * 3.5)
    assert page.inner_text("#panel h2 .name") == "conv2"
    page.mouse.click(box["x"] + 180, box["y"] + 20 + 17 * 3.5)
    assert int(page.inner_text("#now")) > 0
    page.mouse.move(box["x"] + 10, box["y"] + 20 + 17 * 0.5)
    assert page.inner_text("#tip") == "conv1"
    assert names(page, "#graph g.node.hovered") == {"conv1"}


def test_the_keyboard_does_everything(show):
    page = show(program_of("mnist"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#now") == "2"
    page.keyboard.press("End")
    assert page.inner_text("#now") == "10"
    page.keyboard.press("Shift+ArrowLeft")
    assert page.inner_text("#now") == "0"
    page.keyboard.press(" ")
    page.wait_for_function("Number(document.querySelector('#now').textContent) >= 2")
    page.keyboard.press(" ")
    stopped = page.inner_text("#now")
    page.wait_for_timeout(1600)
    assert page.inner_text("#now") == stopped
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#panel h2 .name") == "conv1"
    page.keyboard.press("Escape")
    assert page.inner_text("#panel h2").startswith("Step ")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    page.wait_for_selector('g.node[data-name="conv1.weight"]')


def test_the_wheel_zooms_about_the_pointer_and_dragging_moves_the_graph(show):
    page = show(program_of("mnist"))
    page.click("#fit")
    page.wait_for_timeout(400)
    node = page.locator("#graph g.node rect.box").first

    def box():
        found = node.bounding_box()
        return found["x"], found["y"], found["width"], found["height"]

    x, y, width, height = box()
    pointer = x + width / 4, y + height / 4
    page.mouse.move(*pointer)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(200)
    closer = box()
    assert closer[2] > 1.2 * width
    assert closer[3] / height == pytest.approx(closer[2] / width, rel=0.05)  # lines keep their width
    assert (closer[0] + closer[2] / 4, closer[1] + closer[3] / 4) == pytest.approx(pointer, abs=2)
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(200)
    assert box() == pytest.approx((x, y, width, height), abs=2)

    frame = page.locator("#graph").bounding_box()
    edge = frame["x"] + 5, frame["y"] + frame["height"] / 2
    page.mouse.move(*edge)
    page.mouse.down()
    page.mouse.move(edge[0] + 60, edge[1] - 40, steps=4)
    page.mouse.up()
    assert box() == pytest.approx((x + 60, y - 40, width, height), abs=2)
    assert page.said == []


def test_enter_opens_and_folds_the_selected_module(show):
    page = show(program_of("resnet18"))
    page.click("#fold")
    page.wait_for_selector('g.node[data-name="layer4/"]')
    page.locator('g.node[data-name="layer4/"]').click(position={"x": 20, "y": 20})
    assert "16 vertices" in page.inner_text("#panel")
    page.keyboard.press("Enter")
    page.wait_for_selector('g.node[data-name="layer4.1/"]')


@pytest.mark.parametrize("name", MODELS)
def test_nothing_overlaps_and_no_text_is_cut(name, show):
    page = show(program_of(name))
    open_all(page)
    faults = page.evaluate(
        """() => {
          const boxes = [...document.querySelectorAll('#graph g.node')];
          const areas = boxes.map(node => node.querySelector('.box').getBoundingClientRect());
          const faults = [];
          for (let i = 0; i < areas.length; i++) for (let j = 0; j < i; j++) {
            const a = areas[i], b = areas[j];
            if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
              faults.push(boxes[i].dataset.name + ' overlaps ' + boxes[j].dataset.name);
          }
          document.querySelector('#graph svg').classList.remove('far');
          for (const node of boxes) for (const text of node.querySelectorAll('.label, .detail'))
            if (text.getBBox().x + text.getBBox().width > node.querySelector('.box').getBBox().width + 1)
              faults.push('cut: ' + text.textContent);
          return faults;
        }"""
    )
    assert faults == []


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 700), (760, 900), (390, 800)])
def test_the_page_fits_the_window_and_its_parts_keep_apart(width, height, show):
    page = show(program_of("resnet18"), width=width, height=height)
    faults = page.evaluate(
        """() => {
          const faults = [];
          if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the window');
          const names = ['header', '#stages', '#graph', '#schedule', '#panel', 'footer'];
          const parts = names.map(name => [name, document.querySelector(name).getBoundingClientRect()]);
          const meet = (a, b) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
          for (const [name, area] of parts) {
            if (area.width < 100 || area.height < 30) faults.push(name + ' is tiny');
            for (const [other, second] of parts)
              if (name < other && ![name, other].includes('footer') && meet(area, second))
                faults.push(name + ' overlaps ' + other);
          }
          return faults;
        }"""
    )
    assert faults == []


def test_names_with_html_in_them_are_shown_as_text(show):
    program = run(literal_program(ZIL(), graph_of([[], [0], [1]], NASTY)), ZIL.passes)
    page = show(program, title=f"A program {NASTY}")
    open_all(page)
    page.locator(f'g.node[data-name="layer0{NASTY}"]').click()
    page.fill("#search", "layer1")
    assert page.locator("img").count() == 0
    assert page.title() == f"A program {NASTY}" == page.inner_text("#title")
    assert page.inner_text("#panel h2 .name") == f"layer0{NASTY}"
    assert f"layer1{NASTY}" in page.locator("#results .name").all_inner_texts()
    assert "<b>x</b>" in page.inner_text("#panel")
    assert page.said == []


def test_light_and_dark_follow_the_system_and_the_button(show):
    def ground(page) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light, dark = show(program_of("mnist")), show(program_of("mnist"), dark=True)
    assert ground(light) > 600 and ground(dark) < 150
    light.keyboard.press("t")
    assert ground(light) == ground(dark)
    dark.click("#theme")
    assert ground(dark) > 600


def test_a_recording_is_replayed(show):
    program, recording = recorded(pccompile.Strict(steps=6))
    page = show(program, steps=6, recording=recording)
    assert "T = 6 inference steps" in page.inner_text("#counts")
    go_to(page, 6)
    assert f"recorded energy {recording.frames[2].energy[6]:.5g}"[:22] in page.inner_text("#sentence")
    page.locator('g.node[data-name="fc"]').click()
    shown = float(re.search(r"\|e\| = (\S+) \(recorded\)", page.inner_text("#panel"))[1])
    assert shown == pytest.approx(recording.frames[2].errors["fc"][6], rel=1e-3)
    page.select_option("#frame", "0")
    shown = float(re.search(r"\|e\| = (\S+) \(recorded\)", page.inner_text("#panel"))[1])
    assert shown == pytest.approx(recording.frames[0].errors["fc"][6], rel=1e-3)
    heats = page.eval_on_selector_all(
        "#graph g.node.errs rect.box", "all => all.map(r => r.style.getPropertyValue('--heat'))"
    )
    assert len(set(heats)) > 2
    assert page.said == []


def in_modules(layers: int):
    """A chain of layers in modules of ten, as a program without optimisation."""
    graph = nx.DiGraph(graph_of([[]] * layers))
    for name, data in graph.nodes(data=True):
        number = re.match(r"layer(\d+)", name)
        if number:
            data["vertex"] = dataclasses.replace(data["vertex"], module=f"block{int(number[1]) // 10}")
    return literal_program(ZIL(), graph)


def test_the_page_stays_usable_with_5000_vertices(show):
    program = in_modules(2500)
    assert len(program.vertices) > 5000
    assert len(grouping(program).groups) >= 250
    page = show(program)
    assert page.locator("#graph g.node").count() <= 60
    go_to(page, 1250)
    assert page.evaluate("JSON.parse(document.querySelector('#learning')?.dataset.parameters ?? '[]')") == learning(
        program, 1250
    )
    page.fill("#search", "layer1234")
    page.keyboard.press("Enter")
    page.wait_for_selector('g.node.selected[data-name="layer1234"]')
    assert page.evaluate("document.querySelectorAll('#graph svg *').length") < 6000
    assert page.said == []


def test_the_page_needs_nothing_but_itself(tmp_path):
    program_of("mnist").save_html(tmp_path / "program.html")
    text = (tmp_path / "program.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text.split('<script type="application/json"')[0])
    data = json.loads(re.search(r'id="program">(.*?)</script>', text, re.DOTALL)[1])
    assert [stage["name"] for stage in data["stages"]] == list(program_of("mnist").stages)
