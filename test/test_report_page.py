"""The report's explorer, in a real browser where there is one."""

import dataclasses
import json
import re
import shutil

import chromium
import firefox
import numpy as np
import pytest
import recordings
from recordings import KINEMATICS

from vla_reasoner_ros import cli
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.cameras import FixedCamera, load_cameras
from vla_reasoner_ros.data.images import encode_jpeg
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms, report
from vla_reasoner_ros.evaluation.page import assembly
from vla_reasoner_ros.evaluation.page.moments import Moment, Recording
from vla_reasoner_ros.evaluation.page.packing import BLOCK, pack, source_of
from vla_reasoner_ros.evaluation.page.replays import TREE_FIELDS
from vla_reasoner_ros.evaluation.replay import replay_bag
from vla_reasoner_ros.evaluation.replay_settings import read_settings
from vla_reasoner_ros.search.lines import principal_path, root_candidates
from vla_reasoner_ros.sim.world import World

MANY, TELLING = 700, 450
LATE, BLANK = (2, 5), 7
"""Decisions without time to search, and one whose instruction the policy does not know."""


@pytest.fixture(scope="module")
def session():
    """Nine real decisions in two recordings; some missed their deadline or fell back."""
    world = World()
    reasoner = arms.make_reasoner("search_learned", {"search.simulations": 24})
    camera = load_cameras("sim")["overview"]
    recorded, number = [], 0
    for seed, count in ((3, 5), (4, 4)):
        world.reset("red_on_plate", seed)
        reasoner.reset(seed)
        moments = []
        for _ in range(count):
            observation = world.observation()
            if number == BLANK:
                observation = dataclasses.replace(observation, instruction="")
            decision = reasoner.decide(observation, 0.0 if number in LATE else None)
            tree = decision.tree and {name: getattr(decision.tree, name) for name in TREE_FIELDS}
            picture = encode_jpeg(world.render("overview", 120, 160), 80)
            said = dataclasses.asdict(decision.statistics)
            fault = ["the gripper <slipped>"] if number == 1 else []
            moments.append(Moment(world.time, said, tree, picture, fault, ["A remark."]))
            for action in decision.chunk.actions[:4]:
                world.apply(action)
            number += 1
        recorded.append(
            Recording(
                f"put red <on> plate {seed}",
                "a test",
                moments,
                projection=camera.projection(160, 120),
                picture_size=(160, 120),
            )
        )
    world.close()
    return recorded


def moments_of(session):
    return [moment for recording in session for moment in recording.moments]


def flags(session):
    """What the explorer's filters should let through: decisions counted from 1."""
    told = list(enumerate((moment.statistics for moment in moments_of(session)), 1))
    return {
        "deviated": [i for i, said in told if said["deviated"]],
        "missed": [i for i, said in told if said["deadline_missed"]],
        "fell": [i for i, said in told if said["status"] >= 3],
    }


@pytest.fixture(scope="module")
def page(session, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a report.html"
    left_out = report.write_page(path, "A session", ["<p>before</p>"], session, 160)
    if left_out:
        pytest.skip(left_out)
    return path


@pytest.fixture(scope="module")
def browser():
    if chromium.executable() is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(chromium.NAMES)})")
    browser = chromium.Chromium()
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, page):
    """The page as just opened; afterwards it must have had no trouble and asked for nothing."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page)
    browser.until("document.querySelector('#explorer').dataset.decision")
    yield browser
    assert browser.problems == []
    assert browser.requests == []


def text(browser, selector):
    return browser.run(f"document.querySelector({selector!r}).innerText")


def decision(browser):
    return int(browser.run("document.querySelector('#explorer').dataset.decision"))


def choose(browser, number):
    browser.run(f"(location.hash = '#decision={number}')")
    browser.until(f"document.querySelector('#explorer').dataset.decision === '{number}'")


def rows(browser):
    """Numbers of the decisions in the list."""
    return browser.run(
        "[...document.querySelectorAll('.row:not([hidden]) .number')]"
        ".map((cell) => Number(cell.textContent)).sort((a, b) => a - b)"
    )


def test_the_session_has_what_the_tests_are_about(session):
    found = flags(session)
    assert found["deviated"]
    assert set(found["missed"]) >= {number + 1 for number in LATE}
    assert set(found["fell"]) == {number + 1 for number in (*LATE, BLANK)}
    assert {source_of(moment.statistics) for moment in moments_of(session)} >= {"policy", "hold"}


def test_a_decision_shows_its_numbers_its_tree_and_its_paths(opened, session):
    told = moments_of(session)
    number = next(i for i, moment in enumerate(told, 1) if moment.statistics["deviated"])
    said, tree = told[number - 1].statistics, told[number - 1].tree
    choose(opened, number)
    verdict = text(opened, ".verdict-line")
    assert f"candidate {said['chosen_id']} instead of the policy's own" in verdict
    assert f"+{said['margin']:.3f} in value" in verdict
    assert "A remark." in text(opened, ".remarks")
    why = text(opened, "table.why")
    assert f"{said['chosen_value']:.3f}" in why
    assert f"{said['policy_value']:.3f}" in why
    label = opened.run("document.querySelector('.tree-frame canvas').ariaLabel")
    assert f"search tree of {len(tree['parents'])} nodes" in label
    drawn = opened.run("document.querySelectorAll('.scene .path').length")
    assert drawn == len(opened.run("Object.keys(explorer.detail.treeView.tree.roots)"))
    listed = opened.run("document.querySelectorAll('.candidates tbody tr').length")
    assert listed == min(len(said["candidate_ids"]), 10 + (0 not in said["candidate_ids"][:10]))
    picture = opened.run("document.querySelector('.scene image').getAttribute('href')")
    assert picture.startswith("data:image/jpeg;base64,")


def test_the_tree_on_the_page_is_the_tree_of_the_search(opened, session):
    number = next(i for i, moment in enumerate(moments_of(session), 1) if moment.tree)
    choose(opened, number)
    tree = moments_of(session)[number - 1].tree
    shown = opened.run("explorer.detail.treeView.tree")
    assert shown["parents"] == tree["parents"].tolist()
    assert shown["visits"] == tree["visits"].tolist()
    np.testing.assert_allclose(shown["values"], tree["values"], atol=1e-4)
    np.testing.assert_allclose(shown["priors"], tree["priors"], atol=1e-4)
    assert shown["origins"] == list(tree["origins"])
    opened.run("explorer.detail.treeView.canvas.focus()")
    opened.run("explorer.detail.treeView.pick(0)")
    opened.key("ArrowDown")
    first = opened.run("explorer.detail.treeView.node")
    assert tree["parents"][first] == 0
    assert f"value {tree['values'][first]:.3f}" in text(opened, ".node-words")


def test_a_model_that_draws_has_its_pictures_along_both_lines(browser, session, tmp_path):
    first = next(moment for moment in moments_of(session) if moment.statistics["deviated"])
    said, tree = first.statistics, first.tree
    frames = dict.fromkeys(range(1, len(tree["parents"])), first.picture)
    drawn = dataclasses.replace(first, frames=frames)
    path = tmp_path / "drawn.html"
    if left_out := report.write_page(path, "x", [], [Recording("x", "", [drawn])], 160):
        pytest.skip(left_out)
    browser.open(path)
    browser.until("document.querySelector('#explorer').dataset.decision")
    roots = root_candidates(tree, said)
    lines = [principal_path(tree, roots[number])[1:] for number in (said["chosen_id"], 0)]
    shown = "[...document.querySelectorAll('.frames')].map((f) => f.querySelectorAll('img').length)"
    assert browser.run(shown) == [len(line) for line in lines]


def test_filters_leave_what_they_name(opened, session):
    found = flags(session)
    for name, key in (("deviated", "d"), ("missed", "m"), ("fell", "f")):
        assert str(len(found[name])) in text(opened, f"[data-filter={name}]")
        opened.key(key)
        assert rows(opened) == found[name]
        opened.until(f"{json.dumps(found[name])}.includes(explorer.detail.shown + 1)")
        opened.key(key)
    opened.key("m")
    opened.key("f")
    assert rows(opened) == sorted({*found["missed"], *found["fell"]})
    opened.key("a")
    assert rows(opened) == list(range(1, len(moments_of(session)) + 1))


def test_a_fallback_says_why_and_a_fault_is_plain_text(opened, session):
    choose(opened, LATE[0] + 1)
    assert "Fell back to the policy's own chunk" in text(opened, ".verdict-line")
    assert "missed its deadline" in text(opened, ".remarks")
    assert opened.run("document.querySelector('.tree-pane').hidden")
    choose(opened, BLANK + 1)
    assert "The arm was told to hold" in text(opened, ".verdict-line")
    choose(opened, 2)
    assert "the gripper <slipped>" in text(opened, ".remarks")
    assert "put red <on> plate 3" in text(opened, ".decision-title")


def test_it_is_used_by_keyboard_alone(opened, session):
    last = len(moments_of(session))
    choose(opened, 1)
    for key, expected in (("j", 2), ("j", 3), ("k", 2), ("n", 6), ("p", 1)):
        opened.key(key)
        opened.until(f"document.querySelector('#explorer').dataset.decision === '{expected}'")
    opened.key("a")
    opened.run("document.querySelector('.list').focus()")
    for key, expected in (("End", last), ("Home", 1), ("ArrowDown", 2)):
        opened.key(key)
        opened.until(f"document.querySelector('#explorer').dataset.decision === '{expected}'")
    opened.key("?")
    assert opened.run("document.querySelector('dialog').open")


def test_a_click_on_the_timeline_chooses_the_decision_there(opened, session):
    choose(opened, 1)
    x, y = opened.run(
        "(() => { const plot = explorer.timeline.plots[0];"
        "const box = plot.over.getBoundingClientRect();"
        "return [box.left + plot.valToPos(explorer.session.place[6], 'x'), box.top + 20]; })()"
    )
    opened.click(x, y)
    opened.until("document.querySelector('#explorer').dataset.decision === '7'")
    assert decision(opened) == 7


@pytest.fixture(scope="module")
def long_page(session, tmp_path_factory):
    """Many more decisions than fit into a window, the most telling of them not the first."""
    told = moments_of(session)
    many = [
        dataclasses.replace(told[i % len(told)], time_s=0.4 * i, picture=None, tree=None)
        for i in range(MANY)
    ]
    best = max(range(len(told)), key=lambda i: (told[i].statistics["deviated"], i))
    said = dict(told[best].statistics) | {"margin": 0.9, "deviated": True}
    many[TELLING] = dataclasses.replace(told[best], time_s=0.4 * TELLING, statistics=said)
    path = tmp_path_factory.mktemp("long") / "page.html"
    if left_out := report.write_page(path, "Many", [], [Recording("many", "", many)], 160):
        pytest.skip(left_out)
    return path


def test_of_many_decisions_only_what_is_in_sight_exists(browser, long_page):
    browser.open(long_page)
    browser.until("document.querySelector('#explorer').dataset.decision")
    fits = browser.run("explorer.list.container.clientHeight") // 30 + 14
    for share in (0.0, 0.5, 0.501, 1.0):
        browser.run(
            "(explorer.list.container.scrollTop = "
            f"{share} * explorer.list.container.scrollHeight, explorer.list.draw())"
        )
        shown = rows(browser)
        assert len(shown) <= fits < MANY
        assert shown == list(range(shown[0], shown[-1] + 1))
        assert browser.run("document.querySelectorAll('.row').length") <= fits
    assert shown[-1] == MANY
    wide = browser.run("explorer.timeline.marks")
    browser.size(390, 800)
    browser.until("explorer.timeline.plots.at(-1).width < 400")
    browser.run("explorer.timeline.plots.at(-1).redraw()")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    columns = browser.run("explorer.timeline.plots.at(-1).over.clientWidth")
    drawn = browser.run("explorer.timeline.marks")
    browser.size(1400, 1000)
    assert 0 < drawn <= 8 * columns  # four sources and four lanes
    assert drawn < wide


def test_the_first_decision_is_there_before_the_rest_is_read(browser, long_page, tmp_path):
    content = long_page.read_text(encoding="utf-8")
    ids = re.findall(r'<script type="[^"]+" id="(session-[^"]+)">', content)
    first = f"session-details-{TELLING // BLOCK}"
    assert ids[:2] == ["session-index", first]
    assert content.index('import "page/main"') < content.index('id="session-index"')
    # A file that ends after the first block has all that the first decision takes.
    cut = tmp_path / "cut.html"
    cut.write_text(content[: content.index(f'id="{ids[3]}"') - 40], encoding="utf-8")
    browser.problems.clear()
    browser.open(cut)
    browser.until(f"document.querySelector('#explorer').dataset.decision === '{TELLING + 1}'")
    assert browser.problems == []


def test_it_is_the_same_page_in_firefox(session, page):
    if firefox.executable() is None:
        pytest.skip(f"no Firefox is installed (looked for {', '.join(firefox.NAMES)})")
    other = firefox.Firefox()
    try:
        other.open(page)
        other.until("document.querySelector('#explorer').dataset.decision")
        told = moments_of(session)
        number = next(i for i, moment in enumerate(told, 1) if moment.statistics["deviated"])
        choose(other, number)
        said, tree = told[number - 1].statistics, told[number - 1].tree
        assert f"+{said['margin']:.3f} in value" in text(other, ".verdict-line")
        assert other.run("explorer.detail.treeView.tree")["visits"] == tree["visits"].tolist()
        drawn = other.run("document.querySelectorAll('.scene .path').length")
        assert drawn == len(other.run("Object.keys(explorer.detail.treeView.tree.roots)"))
        other.key("d")
        assert rows(other) == flags(session)["deviated"]
        other.key("a")
        choose(other, 1)
        for key, expected in (("j", 2), ("n", 6), ("p", 1)):
            other.key(key)
            other.until(f"document.querySelector('#explorer').dataset.decision === '{expected}'")
        assert other.run("document.documentElement.scrollWidth - innerWidth") <= 0
        assert other.problems == []
        assert other.requests == []
    finally:
        other.close()


@pytest.mark.parametrize(("width", "height"), [(390, 800), (1000, 700), (1900, 1000)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(opened, width, height, theme):
    opened.theme(theme)
    opened.size(width, height)
    opened.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    wide = opened.run("document.documentElement.scrollWidth - innerWidth")
    opened.size(1400, 1000)
    assert wide <= 0


def test_without_the_chart_library_the_report_says_what_is_missing(
    session, tmp_path, monkeypatch, browser
):
    shutil.copytree(
        assembly.sources(), tmp_path / "report", ignore=shutil.ignore_patterns("node_modules")
    )
    monkeypatch.setattr(assembly, "sources", lambda: tmp_path / "report")
    left_out = report.write_page(tmp_path / "page.html", "A session", [], session, 160)
    assert re.search(r"uplot 1\.\S+ is not there: run `make setup`", left_out)
    browser.open(tmp_path / "page.html")
    assert "uplot" in text(browser, ".note")


def test_the_library_is_fetched_as_locked_and_from_wherever_npm_is_set_up():
    folder = assembly.sources()
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in entry for name, entry in lock.items() if name)
    assert "http" not in (folder / "package-lock.json").read_text()


def test_what_is_no_decision_is_refused_by_name(session):
    moment = moments_of(session)[0]
    lacking = {k: v for k, v in moment.statistics.items() if k != "margin"}
    with pytest.raises(ConfigurationError, match=r"decision 1 of 'x'.*margin"):
        pack([Recording("x", "", [dataclasses.replace(moment, statistics=lacking)])], 100)
    with pytest.raises(ConfigurationError, match="no image"):
        pack([Recording("x", "", [dataclasses.replace(moment, picture=b"no")])], 100)


def test_pictures_are_no_wider_than_asked(session):
    _, wide = pack(session, 160)
    _, narrow = pack(session, 40)
    assert len(narrow) < 0.8 * len(wide)


# A replayed bag.

REPLAYED = {"planner.world_model": "latent", "search.simulations": 8, "search.wave": 4}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    contract = folder / "contract.yaml"
    contract.write_text(recordings.CONTRACT.replace(", height: 24, width: 32", ""))
    instruction = "put the red block on the plate"
    happened = recordings.events(seconds=1.3, instruction=instruction)
    with BagReader(recordings.record(folder / "bag", happened)) as bag:
        settings = read_settings(bag, contract=str(contract), overrides=REPLAYED)
        return replay_bag(bag, settings, folder / "out")


def test_the_verb_makes_a_page_of_a_replay(replayed, browser, capsys):
    assert cli.main(["report", str(replayed.path), "--cameras", "sim"]) == 0
    path = replayed.path / "report.html"
    assert str(path) in capsys.readouterr().out
    browser.problems.clear()
    browser.open(path)
    browser.until("document.querySelector('#explorer').dataset.decision")
    table = replayed.rows()
    assert browser.run("explorer.session.count") == len(table)
    number = next(i for i, row in enumerate(table, 1) if row["demonstrated_rank"] is not None)
    row = table[number - 1]
    choose(browser, number)
    shown = browser.run("explorer.detail.session.details(explorer.selected)")
    assert shown["statistics"]["simulations"] == row["simulations"]
    tree = replayed.tree(row["stamp_ns"])
    assert shown["tree"]["visits"] == tree.visits.tolist()
    assert len(shown["tree"]["pixels"]) == tree.nodes
    assert "What was really done next" in text(browser, ".remarks")
    assert browser.problems == []


def test_paths_are_shown_from_two_sides_where_the_camera_is_unknown(replayed, browser):
    assert cli.main(["report", str(replayed.path)]) == 0
    browser.open(replayed.path / "report.html")
    browser.until("document.querySelector('#explorer').dataset.decision")
    assert browser.run("document.querySelectorAll('.plan').length") == 2
    assert browser.run("document.querySelectorAll('.plan .path').length") > 2


def test_a_camera_that_the_replay_has_not_is_refused(replayed, capsys):
    assert cli.main(["report", str(replayed.path), "--camera", "ceiling"]) == 2
    assert "'ceiling': the replay has pictures of" in capsys.readouterr().err


def test_the_verb_writes_a_replay_for_rerun_too(replayed, tmp_path, capsys):
    pytest.importorskip("rerun", reason="the extra rerun (rerun-sdk) is not installed")
    path = tmp_path / "replay.rrd"
    html = tmp_path / "replay.html"
    assert cli.main(["report", str(replayed.path), "--html", str(html), "--rerun", str(path)]) == 0
    assert path.read_bytes().startswith(b"RRF")
    assert html.is_file()


# Calibrations.


def test_the_simulated_cameras_are_where_the_calibration_says():
    world = World()
    world.reset("red_on_plate", 3)
    for name, camera in load_cameras("sim").items():
        width, height = (int(number) for number in camera.size)
        image = world.render(name, height, width).astype(int)
        for block in world.true_state().blocks.values():
            x, y, depth = camera.projection(width, height) @ np.append(block, 1.0)
            column, row = round(x / depth), round(y / depth)
            seen = image[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).mean(axis=0)
            assert seen.max() > 1.6 * np.median(seen), f"{name}: no block at {column}, {row}"
    world.close()


def test_a_picture_of_another_size_is_the_same_view_stretched():
    camera = load_cameras("sim")["agent"]
    position, _ = KINEMATICS.forward(np.array(KINEMATICS.robot.home))
    pixels = []
    for width, height in ((96, 96), (640, 480)):
        x, y, depth = camera.projection(width, height) @ np.append(position, 1.0)
        pixels.append((x / depth / width, y / depth / height))
    assert pixels[0] == pytest.approx(pixels[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("agent: 3", "agent: expected size"),
        ("[", "not a calibration"),
        ("agent: {size: [1, 2]}", "agent: expected size"),
        (
            "agent: {size: [0, 2], focal: [1, 1], centre: [0, 0], position: [0, 0, 0], "
            "quaternion: [0, 0, 0, 1]}",
            "size: expected positive",
        ),
        (
            "agent: {size: [1, 2], focal: [1, 1], centre: [0, 0], position: [0, 0, 0], "
            "quaternion: [0, 0, 0, 2]}",
            "norm 2.0000",
        ),
        (
            "agent: {size: [1, 2], focal: [1, .nan], centre: [0, 0], position: [0, 0, 0], "
            "quaternion: [0, 0, 0, 1]}",
            "focal: expected 2 numbers",
        ),
    ],
)
def test_a_wrong_calibration_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "cameras.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load_cameras(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_cameras(tmp_path / "none.yaml")


def test_a_calibration_is_made_of_numbers_that_can_be():
    with pytest.raises(ConfigurationError, match="position: expected 3"):
        FixedCamera((1, 1), (1, 1), (0, 0), (0, 0), (0, 0, 0, 1))
