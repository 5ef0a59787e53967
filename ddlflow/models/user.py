"""The user's own code: bound to its arguments, and blamed in one line where it fails."""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddlflow.errors import SpecError

_FRAMEWORK = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<frozen")
_INSTALLED = (*_FRAMEWORK, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))


def one_line(error: BaseException) -> str:
    """An exception as "ValueError: text (net.py:14)".

    The text is the exception's first line. The place is the last frame in a file that is not
    installed (the user's own), else the last one that is neither torch's nor ddlflow's.
    """
    words = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    for foreign in (_INSTALLED, _FRAMEWORK):
        for frame in frames:
            if not frame.filename.startswith(foreign):
                return f"{text} ({frame.filename}:{frame.lineno})"
    return text


def bind(
    name: str,
    code: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    offered: Mapping[str, Any],
    num_positional: int = 0,
) -> dict[str, Any]:
    """The keyword arguments for a call of user code.

    Args:
        name: ``module:name`` as the pipeline has it, for messages.
        code: a class or a function.
        arguments: what the pipeline gives it; all of it is passed on.
        offered: what ddlflow knows; of this, what the code has a parameter for is passed on
            (all of it where the code takes ``**kwargs``). ``arguments`` go before it.
        num_positional: how many leading parameters the call fills by position.

    Raises:
        SpecError: the code has no parameter for an argument, or needs one that nobody gives.
    """
    parameters = list(inspect.signature(code).parameters.values())[num_positional:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [key for key in arguments if key not in named and not takes_any]
    if unknown:
        raise SpecError(
            f"{name} has no parameter {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(named) or 'none'}. Remove or rename the argument in the pipeline."
        )
    bound = {key: value for key, value in offered.items() if takes_any or key in named}
    bound |= arguments
    missing = [key for key, p in named.items() if p.default is p.empty and key not in bound]
    if missing:
        raise SpecError(
            f"{name} needs {', '.join(map(repr, missing))}, which the pipeline does not give. "
            "Write it beside `use`, or give the parameter a default."
        )
    return bound


def build_user(
    name: str,
    user_class: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    offered: Mapping[str, Any],
) -> nn.Module:
    """Make the user's model; the arguments are those of ``bind``.

    Raises:
        SpecError: its arguments do not fit, it raises, or what it makes is no ``nn.Module``.
    """
    bound = bind(name, user_class, arguments, offered=offered)
    shown = ", ".join(f"{key}={value!r}" for key, value in bound.items())
    try:
        model = user_class(**bound)
    except Exception as error:
        raise SpecError(f"{name}({shown}) raised {one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"{name}({shown}) made a {type(model).__name__}; expected a torch.nn.Module."
        )
    return model
