"""The command line on real stores: what it writes, and one line for everything that can go wrong."""

import subprocess
import sys
import warnings

import pytest

from propkit.figures.__main__ import main


@pytest.fixture
def store(make_store, groups, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_store(tmp_path / "run.zarr", steps, groups)


def failure(capsys, *arguments):
    """What the command says when it fails; arguments that argparse refuses exit at once."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("name", ["fig2", "fig3", "fig4"])
def test_a_figure_is_written_and_its_path_printed(store, capsys, tmp_path, name):
    assert main([name, str(store)]) == 0
    assert capsys.readouterr() == (f"{name}.png\n", "")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")]
)
def test_the_suffix_says_the_format_and_the_file_is_reproducible(
    store, capsys, tmp_path, suffix, start
):
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for file in files:
        assert main(["fig3", str(store), "-o", str(file)]) == 0
    assert files[0].read_bytes().startswith(start)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_runs_are_compared_with_labels_sizes_and_options(store, capsys, tmp_path, monkeypatch):
    import propkit.figures.style as style

    drawn = []
    save = style.Figure.savefig
    monkeypatch.setattr(
        style.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append((self, k)), save(self, *a, **k)),
    )
    options = ["--label", "L2", "ortho", "--size", "4", "3", "--dpi", "50", "--steps", "0", "9"]
    assert main(["fig4", str(store), str(store), *options]) == 0
    ((figure, keywords),) = drawn
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["L2", "ortho"]
    assert figure.get_size_inches().tolist() == [4, 3]
    assert keywords["dpi"] == 50
    texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert texts == ["iteration 0", "iteration 10"]
    assert (
        main(["fig3", str(store), "--set", "first=2", "--set", "corrected=True", "--label", "a"])
        == 0
    )
    figure, _ = drawn[-1]
    assert figure.axes[1].get_title(loc="left") == "from iteration 2 on"
    assert "tilde" in figure.get_supylabel()


def test_what_can_go_wrong_is_said_in_one_line(store, make_store, capsys, tmp_path):
    run = str(store)
    assert "expected the name of a figure" in failure(capsys)
    unknown = failure(capsys, "fig9", run)
    assert unknown.startswith("python -m propkit.figures: unknown figure 'fig9'. Did you mean fig")
    assert "unknown figure 'fig9'" in failure(capsys, "fig9", "--help")
    assert "expected at least one run" in failure(capsys, "fig3")
    assert "no run at" in failure(capsys, "fig3", "nothing.zarr")
    (tmp_path / "empty").mkdir()
    assert "no run matches" in failure(capsys, "fig3", str(tmp_path / "empty"))
    assert "no run matches" in failure(capsys, "fig3", str(tmp_path / "*.nothing"))
    (tmp_path / "text.zarr").write_text("no run")
    assert "text.zarr" in failure(capsys, "fig3", str(tmp_path / "text.zarr"))
    assert "ends in .png, .pdf, .svg" in failure(capsys, "fig3", run, "-o", "x.jpeg")
    assert "ends in .png, .pdf, .svg" in failure(capsys, "fig3", run, "-o", "x")
    assert "no folder 'no'" in failure(capsys, "fig3", run, "-o", "no/x.png")
    assert "found 2 for 1" in failure(capsys, "fig3", run, "--label", "a", "b")
    assert "fig3 has no option 'steps'" in failure(capsys, "fig3", run, "--steps", "1")
    assert "fig3 has no option 'x'; it has labels, corr" in failure(
        capsys, "fig3", run, "--set", "x=1"
    )
    assert "--set expects KEY=VALUE" in failure(capsys, "fig3", run, "--set", "first")
    assert "must be positive" in failure(capsys, "fig3", run, "--size", "0", "1")
    assert "must be positive" in failure(capsys, "fig3", run, "--dpi", "0")
    assert "more than 16,384 pixels" in failure(capsys, "fig3", run, "--size", "999", "1")
    assert "invalid int value: 'x'" in failure(capsys, "fig4", run, "--steps", "x")
    assert "expected one of screen, paper, dark" in failure(capsys, "fig3", run, "--style", "x")
    assert "surface has no option 'steps'" in failure(capsys, "surface", run, "--steps", "1")
    assert "no layer; there are layer1, " in failure(capsys, "fig4", run, "--layers", "x")
    assert "unrecognized arguments: --bogus" in failure(capsys, "fig3", run, "--bogus")
    assert "(`python -X dev" in failure(capsys, "fig3", run, "--set", "first=oops")
    lacking = make_store(tmp_path / "l.zarr", [0], {"weight": {"norm": [[1, 1, 1, 1]]}})
    assert "probes=['error_moment']" in failure(capsys, "fig3", str(lacking))
    single = make_store(tmp_path / "s.zarr", [0], {"error_moment": {"output": [[1]]}}, ["Linear"])
    assert "at least two layers" in failure(capsys, "fig3", str(single))
    empty = make_store(tmp_path / "e.zarr", [], {"error_moment": {"output": []}})
    assert "has no row of 'error_moment' yet" in failure(capsys, "fig3", str(empty))
    assert not list(tmp_path.glob("*.p*"))


def test_layers_and_styles_reach_the_figure(store, monkeypatch):
    import propkit.figures.style as style

    drawn = []
    monkeypatch.setattr(style.Figure, "savefig", lambda self, *a, **k: drawn.append(self))
    assert main(["fig4", str(store), "--layers", "layer[12]", "--style", "dark"]) == 0
    assert main(["fig4", str(store), "--style", "paper"]) == 0
    dark, paper = drawn
    lines = [line for line in dark.axes[0].lines if line.get_gid() == "curve"]
    assert {tuple(line.get_xdata()) for line in lines} == {(1, 2)}
    assert sum(dark.get_facecolor()[:3]) < 1 < sum(paper.get_facecolor()[:3])
    sizes = [f.axes[0].xaxis.label.get_fontsize() for f in (dark, paper)]
    assert sizes == [10, 8]


def test_a_run_that_is_still_being_written_is_drawn(
    make_store, groups, tmp_path, monkeypatch, capsys
):
    import numpy as np

    from propkit.schema import Group, Variable
    from propkit.store.writer import ZarrWriter

    monkeypatch.chdir(tmp_path)
    writer = ZarrWriter.create(tmp_path / "now.zarr", {})
    writer.define(Group("log", (Variable("loss"),)))
    writer.append("log", np.arange(3), {"loss": np.arange(3.0)})
    writer.commit()
    assert main(["learning_curves", "now.zarr"]) == 0
    writer.append("log", np.arange(3, 6), {"loss": np.arange(3.0)})
    writer.commit()
    assert main(["overview", "now.zarr", "-o", "page.svg"]) == 0
    writer.close("complete")
    assert capsys.readouterr() == ("learning_curves.png\npage.svg\n", "")
    assert "(running)" in (tmp_path / "page.svg").read_text()


def test_a_warning_is_one_line_too(store, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["fig3", str(store), "--size", "0.2", "0.2"]) == 0
    out, err = capsys.readouterr()
    assert out == "fig3.png\n"
    assert err.startswith("python -m propkit.figures: warning: constrained_layout not applied")
    assert err.count("\n") == 1


def test_the_command_itself_needs_no_torch(store, tmp_path):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['figures', 'fig4', {str(store)!r}]\n"
        "try: runpy.run_module('propkit.figures', run_name='__main__')\n"
        "except SystemExit as exit: assert not exit.code, exit.code\n"
        "bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fig4.png\n", "")


def test_the_command_ends_with_status_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "propkit.figures", "fig3", "none.zarr"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("python -m propkit.figures: no run at")
    assert done.stderr.count("\n") == 1
