"""Finds and loads pretrained weights by timm's names; `build.py` has the name for each variant.

Only safetensors files are read: loading a pickle can run any code.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_DIR_VARIABLE = "ORCHESTRATOR_WEIGHTS_DIR"

_CONNECT_TIMEOUT_S = 5.0
_KEYS_SHOWN = 8


class WeightsError(ValueError):
    """Pretrained weights are missing or do not fit."""


def find_weights(timm_name: str) -> Path:
    """Return the safetensors file of a timm model, such as "tf_efficientnet_b0.aa_in1k".

    From the user's folder of weights, the hub's cache, or a download. Without a network it fails at
    once, where the hub's own client would retry for 23 s.

    Raises:
        WeightsError: timm publishes none, or there is no file and the hub cannot be reached.
    """
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE) or "~/.cache/orchestrator/weights"
    # Unlike `Path.expanduser` this raises nothing where there is no home directory.
    local = Path(os.path.expanduser(folder)) / f"{timm_name}.safetensors"
    if local.is_file():
        return local
    hub_id, file_name = _hub_location(timm_name, local)

    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(hub_id, file_name)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Unlike the download, this does not retry.
        hub.get_hf_file_metadata(hub.hf_hub_url(hub_id, file_name), timeout=_CONNECT_TIMEOUT_S)
        return Path(hub.hf_hub_download(hub_id, file_name))
    except Exception as error:  # of the client, its HTTP library or the system
        raise WeightsError(
            f"The ImageNet weights {timm_name!r} are not on this machine and could not be "
            f"downloaded ({type(error).__name__}: {error}). Fetch the file {file_name!r} of "
            f"{hub_id!r} from the Hugging Face hub on a machine with a network (hf download "
            f"{hub_id} {file_name}) and put it at {local}, or set {WEIGHTS_DIR_VARIABLE} to the "
            f"folder that holds {local.name}."
        ) from error


def _hub_location(timm_name: str, local: Path) -> tuple[str, str]:
    """Return the hub id and the name of the safetensors file of a timm model's weights."""
    from timm.models import get_pretrained_cfg

    published = get_pretrained_cfg(timm_name)
    if published is None or not published.hf_hub_id:
        raise WeightsError(
            f"timm has no pretrained weights for {timm_name!r} on the Hugging Face hub. Choose "
            "weights 'none', the path of a safetensors file, or a name of "
            "timm.list_models(pretrained=True)."
        )
    file_name = published.hf_hub_filename or "model.safetensors"
    if published.custom_load or not file_name.endswith(".safetensors"):
        raise WeightsError(
            f"The pretrained weights of {timm_name!r} are not published as a safetensors file. "
            f"Convert them once, and give the path of the result or put it at {local}."
        )
    return published.hf_hub_id, file_name


def not_safetensors(path: str) -> str | None:
    """Return the sentence for a path of no whole safetensors file; None for one.

    A file that is not on this machine may be on those that train.
    """
    if not path.endswith(".safetensors"):
        return (
            "Weights are 'none', 'imagenet' or the path of a .safetensors file, because loading a "
            f"pickle can run any code; got {path!r}. Convert a trusted .pth file once: "
            "safetensors.torch.save_file(torch.load(OLD, weights_only=True), NEW)."
        )
    file = Path(path).expanduser()
    if not file.is_absolute():
        return (
            "The path of a weights file must be absolute, because workers run in folders of their "
            f"own; got {path!r}."
        )
    if not file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):  # reads the header and compares it with the file's size
            return None
    except (SafetensorError, OSError) as error:
        return f"The weights file {path} is not a whole safetensors file ({error}). Fetch it again."


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy a safetensors file's weights into `model`.

    A classifier of another shape is left out; everything else must match. The first convolution is
    adapted to the model's channels as timm does: summed for 1 channel, else repeated and rescaled.
    timm's own conversion of the file's keys is applied where it has one (such as position
    embeddings for another image size).

    Raises:
        WeightsError: the file is missing or damaged, or its tensors are not the model's; the
            missing, the unexpected and those of another shape are named.
    """
    state = _converted(model, _read(path))
    wanted = model.state_dict()
    fitting = {n: t for n, t in state.items() if n in wanted and wanted[n].shape == t.shape}
    misfits = [name for name in state if name not in fitting]
    heads = tuple(f"{name}." for name in _published_names(model, "classifier") or ("classifier",))
    replaced = heads if any(name.startswith(heads) for name in misfits) else ()

    absent = model.load_state_dict(fitting, strict=False).missing_keys
    missing = [name for name in absent if name not in state and not name.startswith(replaced)]
    unexpected = [name for name in misfits if name not in wanted and not name.startswith(heads)]
    reshaped = [
        f"{name} {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in misfits
        if name in wanted and not name.startswith(heads)
    ]
    listed = {"Missing": missing, "Unexpected": unexpected, "Of another shape": reshaped}
    problems = [f"{kind}: {_listed(names)}." for kind, names in listed.items() if names]
    if problems:
        raise WeightsError(
            f"The weights in {path} are not those of this model ({type(model).__name__}); only "
            f"its classifier may differ. {' '.join(problems)} Use the file of the same variant."
        )


def _read(path: Path) -> dict[str, Tensor]:
    if problem := not_safetensors(str(path)):
        raise WeightsError(problem)
    if not path.is_file():
        raise WeightsError(f"There is no weights file at {path}. Check the path.")
    from safetensors.torch import load_file

    state: dict[str, Tensor] = load_file(path)
    return state


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with timm's conversion of keys, and RGB kernels adapted to the channels."""
    from timm.models import adapt_input_conv

    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        takes_model = len(inspect.signature(convert).parameters) > 1
        state = dict(convert(state, model) if takes_model else convert(state))
    for name in (f"{name}.weight" for name in _published_names(model, "first_conv")):
        kernel = state.get(name)
        if kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 3:
            state[name] = adapt_input_conv(model.get_parameter(name).shape[1], kernel)
    return state


def _published_names(model: nn.Module, key: str) -> tuple[str, ...]:
    """Return names of layers from the record that timm keeps on its models; none on ours."""
    record: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    value = record.get(key) or ()
    return (value,) if isinstance(value, str) else tuple(value)


def _listed(names: list[str]) -> str:
    more = len(names) - _KEYS_SHOWN
    return ", ".join(names[:_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")
