# SPDX-License-Identifier: Apache-2.0
"""`flexc completion`: scripts for shells."""

from __future__ import annotations

from flexd.cli.command import Command, Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

# Both scripts only ask `flexc _complete`, so they needn't change when commands do.
_BASH = r"""# bash completion of flexc
_flexc() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    mapfile -t COMPREPLY < <(flexc _complete -- "$line" 2>/dev/null)
    if [[ ${COMPREPLY[0]} == ":files:" ]]; then
        COMPREPLY=()
        compopt -o default
        return
    fi
    # bash splits words at colons: what is before the last one is on the line already
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local before=${word%"${word##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/:] ]]; then
        compopt -o nospace
    fi
}
complete -F _flexc flexc
"""
_ZSH = r"""#compdef flexc
# zsh completion of flexc
_flexc() {
    local -a found
    found=("${(@f)$(flexc _complete -- "$LBUFFER" 2>/dev/null)}")
    if [[ $found[1] == ":files:" ]]; then
        _files
        return
    fi
    found=(${found:#})
    compadd -S '' -- ${(M)found:#*[/:]}
    compadd -- ${found:#*[/:]}
}
compdef _flexc flexc
"""


def _bash(context: Context, args: Arguments) -> None:  # noqa: ARG001
    print(_BASH, end="")


def _zsh(context: Context, args: Arguments) -> None:  # noqa: ARG001
    print(_ZSH, end="")


COMMAND = Group(
    "completion",
    "Print the completion script of a shell",
    [Command("bash", "For bash", _bash), Command("zsh", "For zsh", _zsh)],
    examples=[
        ("source <(flexc completion bash)", "In this shell; put it into ~/.bashrc for every one"),
        ("flexc completion bash > /etc/bash_completion.d/flexc", "For all users"),
        ("source <(flexc completion zsh)", "After compinit in ~/.zshrc"),
    ],
)
