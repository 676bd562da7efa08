"""Completion, asked of the shells themselves; zsh and fish only where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from propkit import recipes
from propkit.__main__ import main
from propkit.commands import commands
from propkit.completion import SHELLS, completion_script
from propkit.figures import registry

RECIPES = {r.name for r in recipes.listed()} | {s.name for s in recipes.sweeps()}
FIGURES = set(registry.names())


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(completion_script(shell))
    return folder


def of_bash(scripts: Path, *words: str, cwd: Path | None = None) -> set[str]:
    """What bash offers for the last of the words: the function that `complete -p` names, called as bash calls it.

    A PATH that is empty shows that completing runs no program.
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    ask = f"""
        source {scripts / "bash"}
        command=$1 PATH=/nonexistent
        registered=$(complete -p "$command") || exit 3
        read -r -a parts <<<"$registered"
        for i in "${{!parts[@]}}"; do [[ ${{parts[i]}} == -F ]] && function=${{parts[i+1]}}; done
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
        "$function" "$command" "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = [bash, "--norc", "-c", ask, "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.split())


# The words of a line, the last one being completed, and all that may be offered.
LINES = [
    (("propkit", ""), set(commands())),
    (("propkit", "tr"), {"train"}),
    (("propkit", "--v"), {"--version"}),
    (("propkit", "train", ""), RECIPES),
    (("propkit", "train", "plain44-"), {"plain44-l2", "plain44-ortho"}),
    (("propkit", "train", "--quiet", "plain44-o"), {"plain44-ortho"}),
    (("propkit", "train", "plain44-l2", ""), set()),
    (("propkit", "train", "--che"), {"--checkpoint-every"}),
    (("propkit", "train", "--data", "digits1"), {"digits16"}),
    (("propkit", "train", "--seed", ""), set()),
    (("propkit", "train", "--seed", "3", "plain44-l"), {"plain44-l2"}),
    (("propkit", "report", "--figures", "fig"), {f for f in FIGURES if f.startswith("fig")}),
    (("propkit", "report", "--figures", "fig2", "norm"), {"norm_ratios"}),
    (("propkit", "report", "--figures", "fig2", "--la"), {"--label"}),
    (("propkit", "completion", "z"), {"zsh"}),
    (("propkit", "nonsense", ""), set()),
    (("python", "-m", "propkit", "inf"), {"info"}),
    (("python3", "-m", "propkit", "train", "table"), {"table2"}),
    (("python", "-m", "propkit.figures", ""), FIGURES),
    (("python", "-m", "propkit.figures", "fig3", "--sty"), {"--style"}),
    (("python", "-m", "propkit.figures", "fig3", "--style", "p"), {"paper"}),
    (("python", "-m", "other", "tr"), set()),
    (("python", "tr"), set()),
]


@pytest.mark.parametrize(("words", "expected"), LINES, ids=[" ".join(w) for w, _ in LINES])
def test_bash(scripts: Path, words: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    assert of_bash(scripts, *words, cwd=tmp_path) == expected


def test_bash_takes_a_value_after_an_equals_sign(scripts: Path) -> None:
    # COMP_WORDBREAKS has '=', so these are the words that bash passes.
    assert of_bash(scripts, "propkit", "train", "--device", "=", "cu") == {"cuda"}
    assert of_bash(scripts, "propkit", "train", "--device", "=") == {"cpu", "cuda"}
    assert "plain44-l2" in of_bash(scripts, "propkit", "train", "--device", "=", "cpu", "plain44")


def test_bash_offers_every_option_of_every_command(
    scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in commands():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        help_text = capsys.readouterr().out.replace(",", " ").replace("]", " ").replace("[", " ")
        shown = {word for word in help_text.split() if word.startswith("--") and word != "--"}
        offered = of_bash(scripts, "propkit", name, "--")
        assert offered <= shown | {"--help"}, name
        assert offered >= {o for o in shown if help_text.count(f"\n  {o} ")}, name


def test_bash_leaves_a_completion_of_python_as_it_is(scripts: Path) -> None:
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    ask = f"complete -W 'mine' python; source {scripts / 'bash'}; complete -p python python3"
    done = subprocess.run([bash, "--norc", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -W 'mine' python",
        "complete -F _propkit_python python3",
    ]


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_the_syntax(scripts: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n", scripts / shell], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_every_word_is_in_every_script(scripts: Path, shell: str) -> None:
    text = (scripts / shell).read_text()
    for word in {*commands(), *RECIPES, *FIGURES}:
        assert word in text


def test_fish(scripts: Path, tmp_path: Path) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    second = ("--figures", "fig2")  # fish completes the first value of an option, and no more
    lines = [(w, e) for w, e in LINES if w[-1] and e and w[-3:-1] != second]
    ask = "\n".join(
        f"echo '>'; complete -C '{' '.join(words)}'" for words, _ in lines
    )  # complete -C is what the tabulator key asks
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [fish, "--no-config", "-c", f"source {scripts / 'fish'}\n{ask}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split(">\n")[1:]
    for (words, expected), answer in zip(lines, answers, strict=True):
        offered = {line.partition("\t")[0] for line in answer.splitlines()}
        assert offered == expected, words


def test_printing_a_script_is_quick_and_needs_no_torch() -> None:
    code = "import sys; from propkit.__main__ import main; main(['completion', 'bash']); "
    code += "assert not {'torch', 'numpy', 'matplotlib', 'xarray', 'zarr'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == completion_script("bash")


def test_an_unknown_shell() -> None:
    with pytest.raises(ValueError, match="no completion for 'tcsh', only for bash, fish, zsh"):
        completion_script("tcsh")
