"""Open a model: the built-in one, a Hugging Face name or folder, or a pair that is already in memory.

What cannot work is refused before weights are read: an unreachable name, an encoder-decoder, a quantised checkpoint
whose package is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, HFValidationError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import logging

from hooke.base.errors import ModelError, nearest
from hooke.model.model import Model, check_pair

BUILTIN = ("hooke/stdlib",)
DeviceMap = str | Mapping[str, Any]

# Packages that unpack quantised weights, by the method that config.json names: (module, name for pip).
_UNPACKERS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "eetq"),
}
# Endings of classes whose head is over the vocabulary.
_OVER_WORDS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration")
_PROBE_SECONDS = 5.0  # for one answer of the hub; two are asked for


def load(
    source: str | Path | tuple,  # (PreTrainedModel, PreTrainedTokenizerBase); checked with a message of its own
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
    device_map: DeviceMap | None = None,
) -> Model:
    """Open a language model, an encoder, or a vision-language model.

    Args:
        source: "hooke/stdlib" (built in), a Hugging Face name, a local folder, or `(hf_model, tokenizer)`.
        dtype: precision of the weights (of those that are not quantised); not used for a pair.
        device: where to put them; not used for a pair, nor beside `device_map`.
        attention: attention kernel, "sdpa" or "eager"; an architecture without SDPA runs eager and says so in the
            model's notes. Not used for a pair.
        device_map: spread the weights over devices: "auto" or a map of module names to devices (needs accelerate).

    Raises:
        ModelError: where the model cannot be found or opened; the reason is known before weights are read wherever
            it can be.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ModelError(f"expected (hf_model, tokenizer), got a tuple of {len(source)}")
        check_pair(*source)
        return Model(*source, name=source[0].config._name_or_path or "unnamed")
    _refuse_device(device)
    name, place = str(source), _place(str(source))
    with _readable(name):
        config = AutoConfig.from_pretrained(place)
        method = _refuse(name, config, device_map)
        if method == "bitsandbytes" and device_map is None:
            device_map = {"": str(device)}  # its weights cannot be moved afterwards
        auto = _auto_class(config)
        options, notes = _kernels(auto, config, attention, dtype)
        if device_map is not None:
            options["device_map"] = device_map
        with _quiet():
            hf, report = auto.from_pretrained(place, dtype=dtype, output_loading_info=True, **options)
        _complete(name, report["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(place)
    model = Model(hf if device_map is not None else hf.to(device), tokenizer, name)
    model.notes = notes
    return model


# -- what is refused, and what is chosen -------------------------------------------------------------------------------


def _refuse_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for a device
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"device {str(device)!r} cannot be used: {reason}; expected for example 'cpu'") from error


def _refuse(name: str, config: PretrainedConfig, device_map: DeviceMap | None) -> str | None:
    """Raise where loading cannot succeed; otherwise the quantisation method, if there is one."""
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name} is a {config.model_type!r} model with an encoder and a decoder; hooke opens decoders, encoders "
            "and vision-language models, whose blocks form one stream"
        )
    if device_map is not None and find_spec("accelerate") is None:
        raise ModelError("device_map needs the package 'accelerate'; run: pip install accelerate")
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    given = settings if isinstance(settings, Mapping) else settings.to_dict()
    old = given.get("load_in_8bit") or given.get("load_in_4bit")  # before the method was written down
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method")) or ("bitsandbytes" * bool(old)))
    needed = [_UNPACKERS[method]] if method in _UNPACKERS else []
    needed += [("accelerate", "accelerate")] if method == "bitsandbytes" else []
    for module, package in needed:
        if not _installed(module):
            raise ModelError(
                f"the weights of {name} are quantised with {method!r}, which needs the package {package!r}; "
                f"run: pip install {package}, or open an unquantised checkpoint"
            )
    return method


def _installed(module: str) -> bool:
    parent, _, child = module.partition(".")
    return find_spec(parent) is not None and (not child or find_spec(module) is not None)


def _auto_class(config: PretrainedConfig) -> Any:
    """Which of transformers' classes opens a checkpoint: what config.json says was saved, else what the type can be."""
    saved = next(iter(config.architectures or ()), "")
    multimodal = hasattr(config, "vision_config")
    order = [AutoModelForCausalLM, AutoModelForMaskedLM]
    order.insert(0 if multimodal else 1, AutoModelForImageTextToText)
    heads = [auto for auto in order if type(config) in auto._model_mapping]
    for auto in heads:
        if saved == auto._model_mapping[type(config)].__name__:
            return auto
    bidirectional = AutoModelForMaskedLM in heads and not getattr(config, "is_decoder", False)
    if saved.endswith("Model") and not saved.endswith("HeadModel"):
        # Only a tied head is in such a checkpoint too; any other would start from random numbers.
        tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
        heads = [] if bidirectional or not tied else heads
    elif saved and not saved.endswith(_OVER_WORDS):
        heads = []  # a classifier or the like: its own head is no vocabulary
    if bidirectional and AutoModelForMaskedLM in heads:
        return AutoModelForMaskedLM
    return next(iter(heads), AutoModel)


def _kernels(
    auto: Any, config: PretrainedConfig, attention: str, dtype: torch.dtype
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The kernels to load with, and notes where they are not those asked for, or not transformers' own choice."""
    cls = auto._model_mapping.get(type(config), None)
    options, notes = {"attn_implementation": attention}, []
    if cls is not None and attention == "sdpa" and not getattr(cls, "_supports_sdpa", True):
        options["attn_implementation"] = "eager"
        notes.append(f"attention runs 'eager', not 'sdpa': transformers has no SDPA for {cls.__name__}")
    if cls is not None and dtype == torch.float64 and cls._can_set_experts_implementation():
        options["experts_implementation"] = "eager"
        notes.append("experts run 'eager': the grouped kernel takes no float64")
    return options, tuple(notes)


def _complete(name: str, missing: Any) -> None:
    """Raise where the checkpoint lacks weights, which transformers would fill with random numbers."""
    lacking = sorted(key for key in missing if "pooler." not in key)  # nothing that hooke reads comes after the pooler
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ModelError(
            f"cannot open model {name!r}: the checkpoint has no weights for {shown}; they would be random numbers. "
            "Expected a checkpoint of the architecture that its config.json names"
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What transformers says about files that it cannot open, in one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot open model {name!r}: {reason}; expected {BUILTIN[0]!r}, a Hugging Face name that is reachable, "
            f"or a local folder with config.json, weights and tokenizer{nearest(name, BUILTIN)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers, and no report of what it loaded: what people see is up to the front end."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


# -- where the files are -----------------------------------------------------------------------------------------------


def builtin_folder(name: str) -> Path:
    """Folder of a shipped model.

    Raises:
        ModelError: for a name that is not shipped.
    """
    if name not in BUILTIN:
        raise ModelError(f"{name!r} is not built in{nearest(name, BUILTIN)}; built in: {', '.join(BUILTIN)}")
    return Path(str(resources.files("hooke.model.builtin"))) / name.removeprefix("hooke/")


def _place(name: str) -> str:
    if name.startswith("hooke/"):
        return str(builtin_folder(name))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is a folder without config.json; expected a Hugging Face model folder")
        return name
    with _readable(name):
        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError as error:
            raise ModelError(f"cannot open model {name!r}: it is neither a folder nor a Hugging Face name") from error
        if not isinstance(cached, str):
            _reach(name)
    return name


def _reach(name: str) -> None:
    """Raise soon where the hub cannot be reached: transformers would try for half a minute.

    Any answer will do, a refusal too: what it means is for transformers to say.
    """
    if is_offline_mode():
        raise OSError("it is not in the local cache, and offline mode is on")
    for wait in (0.5, None):  # one name look-up may fail by chance
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_PROBE_SECONDS)
        except (HfHubHTTPError, FileMetadataError):
            return
        except Exception as error:  # transport errors; their classes differ between versions of the hub's client
            if wait is None:
                raise OSError(f"it is not in the local cache, and the hub cannot be reached ({error})") from error
            time.sleep(wait)
        else:
            return
    return
