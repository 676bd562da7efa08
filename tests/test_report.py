"""`python -m propkit report`: a page that stands for itself, is sound HTML and says what the run says."""

import html
import itertools
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib.image
import numpy as np
import pytest

import propkit
from propkit import __main__ as cli
from propkit.figures import registry
from propkit.report import drawing
from propkit.report.layers import read_layers, verdict_of
from propkit.report.page import page, redraw_command, write_page
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>document.title='taken'</script>\"'&"


def fill(writer, steps, layers=4, close="complete", sites=None, change=lambda q: q, groups=None):
    """q halves from layer to layer towards the input, at every step alike; `change` is applied to it."""
    sites = sites or [f"layer{i}" for i in range(1, layers + 1)]
    coords = {
        "site": np.array(sites, dtype=str),
        "depth": np.arange(1, layers + 1),
        "type": np.array(["Conv2d"] * layers),
        "output_shape": np.array(["(8, 4, 6, 6)"] * layers),
        "fan_in": np.full(layers, 9),
        "fan_out": np.full(layers, 4),
    }
    q = change(np.tile(0.5 ** np.arange(layers)[::-1], (len(steps), 1)))
    everything = {
        "error_moment": {"output": q},
        "weight": {"norm": np.full(q.shape, 3.0)},
        "filter_correlation": {"correlation": 0.01 * q, "pairs": np.ones_like(q)},
    }
    for name, variables in everything.items():
        if groups is not None and name not in groups:
            continue
        writer.define(Group(name, tuple(Variable(v) for v in variables), coords))
        if len(steps):
            writer.append(name, np.asarray(steps), variables)
    writer.define(Group("log", (Variable("loss", "nat"),)))
    if len(steps):
        writer.append("log", np.asarray(steps), {"loss": np.linspace(2.0, 1.0, len(steps))})
    writer.commit()
    if close:
        writer.close(close)
    return writer


def memory(steps=(0, 1, 10, 100), attributes=None, **options):
    writer = MemoryWriter({"label": "tiny", **(attributes or {})})
    fill(writer, steps, **options)
    return Run.from_memory(writer)


def stored(path, steps=(0, 1, 10, 100), attributes=None, **options):
    fill(ZarrWriter.create(path, {"label": "tiny", **(attributes or {})}), steps, **options)
    return path


class Page(HTMLParser):
    """Checks nesting while it parses; keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.captions = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "svg" not in self.open:
            self.words.append(data)

    def all(self, *tags):
        return [a for t, a in self.elements if t in tags]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check(text):
    """What must hold for every page, by the parser and not by the code that wrote it."""
    found = Page(text)
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("main")) == len(found.all("header")) == len(found.all("h1")) == 1
    assert len(found.all("nav")) == len(found.all("footer")) == 1
    levels = [int(t[1]) for t, _ in found.elements if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), levels
    for tag, a in found.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in a)
        for name in ("href", "src", "xlink:href", "action"):
            if name in a:
                assert a[name].startswith(("#", "data:image/png;base64,")), a[name][:80]
        if a.get("href", "").startswith("#"):
            assert a["href"][1:] in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert a.get(name, ids[0]) in ids
        for target in re.findall(r"url\(#([^)]*)\)", " ".join(str(v) for v in a.values())):
            assert target in ids
    assert not re.search(r"(?i)url\((?!#)|@import|xmlns|https?://", text)
    assert all(len(a["aria-label"]) > 30 and a["role"] == "img" for a in found.all("svg"))
    assert all(len(a["alt"]) > 30 for a in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in found.all("th"))
    skip = next(a for t, a in found.elements if t == "a")
    assert (skip["class"], skip["href"]) == ("skip", "#main")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with every figure that the run allows, of a run that is hostile."""
    folder = tmp_path_factory.mktemp("it's a run")
    sites = ["conv1", EVIL, "]]><b>&amp;", "fc"]
    attributes = {
        "label": EVIL,
        "command": f"train.py {EVIL}",
        "config": {"lr": 0.1, EVIL: {"deep": EVIL}},
        "notes": [EVIL],
        "faults": {EVIL: EVIL},
        "model_summary": EVIL,
        "torch_version": "9.9.9",
        "overhead": {"seconds": 0.002, "share": 0.0123, "basis": EVIL, "measured_steps": 1234},
        "sampling": {"error_moment": 50, "weight": "log_spaced(10)"},
    }
    path = stored(folder / "a.zarr", sites=sites, attributes=attributes)
    run = propkit.open(path)
    output = write_page(folder / "a.html", {run.label: run})
    return run, output, output.read_text(encoding="utf-8")


def test_a_page_is_sound_and_needs_nothing_else(whole):
    check(whole[2])


def test_what_comes_from_the_run_is_text(whole):
    _, _, text = whole
    found = Page(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert (
        found.text.count(EVIL) >= 9
    )  # label, site, command, configuration (2), note, fault (2), summary
    assert 'content="default-src' in text


def test_every_figure_of_the_registry_is_drawn_or_its_absence_explained(whole):
    _, _, text = whole
    found = check(text)
    drawn = {a["id"].removeprefix("figure-") for a in found.all("article")}
    start = text.index('id="not-drawn"')
    missing = set(re.findall(r"<dt><code>(\w+)</code>", text[start : text.index("</dl>", start)]))
    assert drawn | missing == set(registry.names())
    assert not drawn & missing
    assert {"learning_curves", "fig2", "fig3", "fig4", "surface"} <= drawn
    assert {"isometry", "activations", "overview"} <= missing
    assert "needs 'jacobian_spectrum'" in found.text
    svgs = found.all("svg")
    assert len(svgs) == 2 * len(drawn)  # for light and for dark screens
    assert text.count("<text") > 40  # text stays text


def test_facts_of_the_run(whole):
    run, _, text = whole
    found = Page(text)
    for fact in (
        "complete , up to step 100",
        "healthy: nothing found at 4 layers",
        "9.9.9",
        f"propkit version {propkit.__version__}",
        "lr 0.1",
        "2 ms per measured step, 1.23% of the training's time",
        "1,234 measured steps",
        "sampling of error_moment every 50 steps",
        "sampling of weight log_spaced(10)",
        "How to read this: each line is one run.",
        # 0.5 ** 3 at the first of four convolutions, at every step
        "ratio of error moments, first to last layer: 0.125 at iteration 0, 0.125 at iteration 100; between 0.125 and "
        "0.125 over 4 recorded iterations.",
        "loss: 2 at iteration 0, 1 at iteration 100; between 1 and 2 over 4 recorded iterations.",
        "error moment 0.125 x that of the last layer",
    ):
        assert fact in found.text, fact
    label = next(
        a["aria-label"] for a in found.all("svg") if "Error of the first" in a["aria-label"]
    )
    assert "0.125 at iteration 100" in label
    assert str(run.path) in found.text


def test_the_command_on_the_page_draws_the_figure_again(whole, tmp_path):
    run, _, _ = whole
    drawn = drawing.draw("fig3", {run.label: run})
    command = redraw_command(drawn, {run.label: run})
    assert command.startswith("python -m propkit.figures fig3 '")
    import shlex

    from propkit.figures.__main__ import main

    words = shlex.split(command)[3:]
    words[words.index("-o") + 1] = str(tmp_path / "again.png")
    assert main(words) == 0
    assert matplotlib.image.imread(tmp_path / "again.png").std() > 0


def failing():
    """Layers that vanish, explode and are dead."""
    import torch

    from propkit.testing import TinyPlain

    torch.manual_seed(0)
    model = TinyPlain(depth=6)
    with torch.no_grad():
        model.features[0].weight.mul_(1e-9)
        model.features[13].weight.zero_()
        model.features[13].bias.fill_(-5.0)
    return model, torch.randn(16, 3, 8, 8), torch.arange(16) % 3


def alike():
    """All samples are nearly the same: every layer is singular, but that of the logits is not judged so."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
    return model, 1 + 0.01 * torch.randn(16, 16), torch.arange(16)


@pytest.mark.parametrize(
    ("network", "verdicts"),
    [(failing, {"dead", "vanishing", "exploding"}), (alike, {"singular", "healthy"})],
)
def test_verdicts_are_those_of_measure(network, verdicts):
    """The two ways to the verdict agree, layer by layer."""
    import torch.nn.functional as F

    model, x, y = network()
    diagnosis = propkit.measure(model, x, y, loss=F.cross_entropy)
    layers = {layer.site: layer for layer in read_layers(diagnosis.run)}
    table = diagnosis.table
    assert verdict_of(list(layers.values())) == diagnosis.verdict
    assert set(table["verdict"].values.tolist()) >= verdicts
    for i, site in enumerate(table["site"].values.tolist()):
        assert layers[site].verdict == table["verdict"].values[i]
        for name in ("error_ratio", "activation_moment", "gradient_norm_ratio", "effective_rank"):
            np.testing.assert_equal(layers[site].values.get(name, math.nan), table[name].values[i])


def test_a_value_is_the_last_one_that_the_layer_had():
    def sometimes(q):
        q[:, 1] = [1.0, 2.0, 3.0, np.nan]
        return q

    layers = read_layers(memory(change=sometimes))
    assert [layer.values.get("error_moment") for layer in layers] == [0.125, 3.0, 0.5, 1.0]
    assert verdict_of(layers) == "healthy: nothing found at 4 layers"
    flagged = {"not_finite": {"error_moment": "step 100, layer2: output is nan"}}
    layers = read_layers(memory(change=sometimes, attributes=flagged))
    assert [layer.verdict for layer in layers] == ["healthy", "exploding", "healthy", "healthy"]
    assert layers[1].evidence == "the error is not finite"
    assert [x.verdict for x in read_layers(memory(change=sometimes), "first")] == ["healthy"] * 4


def test_unhealthy_layers_are_named_with_their_evidence():
    run = memory(change=lambda q: q * [1e-5, 1e6, 1.0, 1.0])
    found = check(page({"sick": run}, figures=[]))
    assert (
        "exploding: 1 of 4 layers, first layer2 (error moment 2.5e+05 x that of the last layer)"
        in found.text
    )
    assert "vanishing 1 layer:" in found.text
    assert "▼ vanishing error moment 1.25e-06 x that of the last layer" in found.text


@pytest.mark.parametrize("steps", [(), (7,)])
@pytest.mark.parametrize("close", ["complete", None])
def test_runs_that_have_hardly_begun(tmp_path, steps, close):
    path = stored(tmp_path / "a.zarr", steps, close=close)
    output = tmp_path / "a.html"
    figures = ["--figures", "learning_curves", "fig3"]
    assert cli.main(["report", str(path), "-o", str(output), *figures]) == 0
    found = check(output.read_text())
    assert ("still being written" in found.text) == (close is None)
    assert ("nothing recorded yet" in found.text) == (not steps)
    assert len(found.all("svg")) == (4 if steps else 0)
    assert ("Nothing was judged" in found.text) == (not steps)


def test_a_run_without_any_group():
    writer = MemoryWriter({})
    found = check(page({"empty": Run.from_memory(writer)}))
    assert "No layer has a value yet." in found.text
    assert not found.all("svg")


def test_a_damaged_group_leaves_the_rest_of_the_page(tmp_path):
    path = stored(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr" / "error_moment")
    found = check(page({"a": propkit.open(path)}, figures=["fig3", "learning_curves"]))
    assert "is damaged: error_moment/depth" in found.text
    assert found.all("svg")


def test_runs_are_compared_and_those_without_are_named(tmp_path):
    runs = {"a": memory(), "b": memory(groups=["weight"]), "c": memory(change=lambda q: q**2)}
    found = check(page(runs, figures=["fig3"]))
    assert "Not in it: b, because fig3 needs 'error_moment'" in found.text
    assert "a: ratio of error moments, first to last layer: 0.125" in found.text
    assert "c: ratio of error moments, first to last layer: 0.0156" in found.text
    assert "b: ratio" not in found.text
    assert "Verdict on each layer of c" in found.text


def test_a_thousand_layers(tmp_path):
    text = page({"deep": memory((0, 1), layers=1000)}, figures=["fig4"])
    found = check(text)
    assert len(text) < 2_000_000
    assert found.text.count("layer1000") == 2  # in both tables


def test_a_figure_too_large_for_svg_becomes_an_image(monkeypatch):
    monkeypatch.setattr(drawing, "MOST_BYTES", 1000)
    found = check(page({"a": memory()}, figures=["fig3"]))
    assert not found.all("svg")
    (light, dark) = found.all("img")
    assert light["src"] != dark["src"]
    assert "0.125 at iteration 100" in light["alt"]


def test_a_figure_that_fails_does_not_take_the_page_with_it(monkeypatch):
    def broken(*runs, labels=None):
        raise RuntimeError("<out of ink>")

    monkeypatch.setattr(registry, "find", lambda name: broken)
    found = check(page({"a": memory()}))
    assert "RuntimeError: <out of ink>" in found.text


def test_drawing_leaves_settings_and_figures_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure = propkit.figures.fig3(memory())
    one = drawing._svg(figure)
    assert drawing._svg(figure) == one  # the same figure is the same markup
    assert dict(mpl.rcParams) == before
    assert "draw" not in vars(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none.zarr"], "no run at"),
        (["{tmp}"], "is not a propkit run"),
        (["{run}", "-o", "{tmp}/a.pdf"], "expected the name of an .html file"),
        (["{run}", "-o", "{tmp}/none/a.html"], "there is no folder"),
        (["{run}", "--figures", "fig33"], "unknown figure 'fig33'. Did you mean fig3"),
        (["{run}", "--label", "a", "b"], "expected one label per run, found 2 for 1"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, capsys, arguments, message):
    run = stored(tmp_path / "a.zarr")
    words = [a.format(tmp=tmp_path, run=run) for a in arguments]
    assert cli.main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("propkit report: ")
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run, output = memory(), tmp_path / "a.html"
    output.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_page(output, {"a": run}, figures=[])
    assert output.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_enough_in_light_dark_and_print():
    style = files("propkit.report").joinpath("page.css").read_text()
    palettes = [
        dict(re.findall(r"--(\w+): (#\w{6});", b))
        for b in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert [len(p) for p in palettes] == [12, 12, 12]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colors in palettes:
        for name, color in colors.items():
            if name not in ("ground", "raised", "line", "figure"):
                assert contrast(color, colors["ground"]) >= 4.5, name
                assert contrast(color, colors["raised"]) >= 4.5, name


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(folder, output, *arguments):
    flags = (
        *(
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    )
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *flags, profile, *arguments, output.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
def test_in_a_browser(whole, tmp_path):
    _, output, text = whole
    dom = browse(tmp_path, output, "--dump-dom")
    assert "taken" not in re.search("<title>(.*?)</title>", dom, re.S)[1].replace(
        "title='taken'", ""
    )
    assert dom.count("<svg") == text.count("<svg")
    assert len(re.findall(r"<(?:th|td)[ >]", dom)) == len(re.findall(r"<(?:th|td)[ >]", text))
    grounds = []
    for name, size, scheme in (("light", "1100,900", 1), ("dark", "400,900", 0)):
        picture = tmp_path / f"{name}.png"
        settings = f"--blink-settings=preferredColorScheme={scheme}"
        browse(tmp_path, output, f"--screenshot={picture}", f"--window-size={size}", settings)
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.std() > 0.02  # something is there
        grounds.append(pixels[0, 0].mean())
    assert grounds[0] == 1.0
    assert grounds[1] < 0.15


PDFTOTEXT = shutil.which("pdftotext")


@pytest.mark.skipif(
    not (CHROMIUM and PDFTOTEXT),
    reason="needs a browser and pdftotext: apt-get install chromium poppler-utils",
)
def test_in_print(tmp_path):
    """Nothing is hidden or cut off on paper, and no heading is parted from what it is of."""
    sites = [f"encoder.layers.{i}.attention" for i in range(40)]
    attributes = {"functions": dict.fromkeys(sites, "a_long_name_without_any_space")}
    path = stored(tmp_path / "a.zarr", layers=40, sites=sites, attributes=attributes)
    run = propkit.open(path)
    output = write_page(tmp_path / "a.html", {run.label: run})
    pdf = tmp_path / "a.pdf"
    dark = "--blink-settings=preferredColorScheme=0"
    browse(tmp_path, output, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", dark)
    done = subprocess.run(
        [PDFTOTEXT, "-bbox", pdf, "-"], capture_output=True, text=True, check=True
    )
    width = float(re.search(r'<page width="([\d.]+)"', done.stdout)[1])
    words = re.findall(r'xMin="([\d.]+)".* xMax="([\d.]+)".*>(.*)</word>', done.stdout)
    texts = [word for _, _, word in words]
    assert sites[-1] in "".join(texts)
    assert max(float(end) for _, end, _ in words) < 0.97 * width
    said = [
        html.unescape("".join(re.findall(r">(.*)</word>", sheet)))
        for sheet in done.stdout.split("<page ")[1:]
    ]
    assert "explodingsignal1e+06" in "".join(said)  # folded up on a screen
    assert f'"{sites[-1]}":"a_long_name_without_any_space"}}' in "".join(said)
    headings = re.findall("<h3[^>]*>(.*?)</h3>", output.read_text(encoding="utf-8"), re.S)
    headings = ["".join(html.unescape(re.sub("<.*?>", "", h)).split()) for h in headings]
    assert len(headings) > 5
    for heading in headings:
        assert any(heading in sheet for sheet in said), heading
        assert not any(sheet.endswith(heading) for sheet in said), heading
