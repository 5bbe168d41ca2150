"""fetchonce completion: the script by which a shell completes what is typed. All but the one for bash is click's own.

The script runs fetchonce with _FETCHONCE_COMPLETE in the environment, and click answers (click.shell_completion).
"""

import os

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, get_completion_class
from click.shell_completion import split_arg_string as words_of

VARIABLE = "_FETCHONCE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


class Bash(ShellComplete):
    """Click's own hands over the words of bash, which cuts them at colons: no URL could be completed."""

    name = "bash"
    source_template = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} type value cut
    local word=${line##* }
    # bash replaces only what stands after the last colon, but for a word in quotes.
    [[ $COMP_WORDBREAKS == *:* && $word != [\\"\\']* ]] && cut=${word%%"${word##*:}"}
    COMPREPLY=()
    while IFS=, read -r type value; do
        [[ $type == plain ]] || continue
        value=${value#"$cut"}
        if [[ $word != [\\"\\']* ]]; then
            printf -v value %%q "$value"
        elif [[ $value == *[\\$\\`\\"\\'\\!\\\\]* ]]; then
            continue # in quotes bash would run or misread it
        fi
        COMPREPLY+=("$value")
    done <<<"$(COMP_LINE=$line %(complete_var)s=bash_complete "$1" 2>/dev/null)"
}
complete -o default -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = words_of(line)[1:]
        return (words[:-1], words[-1]) if words and not line.endswith(" ") else (words, "")

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


add_completion_class(Bash)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which your shell completes commands, options, stored URLs and tools.

    \b
    bash  >~/.local/share/bash-completion/completions/fetchonce
    zsh   >~/.zfunc/_fetchonce, or any directory of $fpath
    fish  >~/.config/fish/completions/fetchonce.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root()
    click.echo(found(root.command, {}, "fetchonce", VARIABLE).source(), nl=False)
