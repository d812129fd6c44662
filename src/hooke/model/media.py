"""What goes into a model beside tokens: pixels, their grids, and marks per token, as a processor of transformers gives
them.

Images lie one after the other over the whole batch, whichever row they belong to. Which row that is follows from the
placeholder tokens: images are taken up in the order of the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from hooke.base.errors import DataError

Media = Mapping[str, Tensor]
_PIXELS, _GRID, _KINDS = "pixel_values", "image_grid_thw", "mm_token_type_ids"
_PER_IMAGE = (_PIXELS, _GRID, "image_sizes", "pixel_attention_mask")


def of_rows(
    media: Media, shape: tuple[int, int], image: Bool[Tensor, "batch pos"] | None, rows: Sequence[int]
) -> dict[str, Tensor]:
    """The media of some rows of a batch of this shape, in the order asked for, repeated where a row is. Rows without an
    image take none along.

    Raises:
        DataError: where it cannot be said which entries belong to which row.
    """
    if not media:
        return {}
    chosen, patches = _images_of(media, image, rows) if any(name in _PER_IMAGE for name in media) else ([], None)
    found = {}
    for name, tensor in media.items():
        if name in _PER_IMAGE and not chosen:
            continue
        if name == _PIXELS and patches is not None:
            parts = tensor.split(patches)
            found[name] = torch.cat([parts[number] for number in chosen])
        elif name in _PER_IMAGE:
            found[name] = tensor[chosen]
        elif tensor.shape[:2] == shape:
            found[name] = tensor[list(rows)]
        else:
            raise DataError(
                f"cannot say which entries of {name!r}, shape {tuple(tensor.shape)}, belong to which row; run these "
                "rows as a batch of their own"
            )
    return found


def moved(media: Media, shape: tuple[int, int], column: Tensor) -> dict[str, Tensor]:
    """The media for rows whose tokens moved: marks per token move along, images stay as they are."""
    rows = torch.arange(shape[0], device=column.device)[:, None]
    return {name: tensor[rows, column] if tensor.shape[:2] == shape else tensor for name, tensor in media.items()}


def plane_positions(
    hf: PreTrainedModel, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], media: Media
) -> Int[Tensor, "3 batch pos"] | None:
    """Position ids where image tokens have places in a plane (Qwen-VL), for prompts with media and what was appended to
    them. None for other models and inputs.
    """
    place = getattr(hf.base_model, "get_rope_index", None)
    if place is None or _KINDS not in media or not any(name.endswith("grid_thw") for name in media):
        return None
    width = media[_KINDS].shape[1]
    known = {name: media[name] for name in inspect.signature(place).parameters if name in media}
    prompt, shift = place(input_ids=ids[:, :width], attention_mask=mask[:, :width].long(), **known)
    behind = (mask.long().cumsum(dim=1) - 1)[:, width:] + shift  # an image takes fewer positions than tokens
    return torch.cat([prompt, behind.expand(3, -1, -1)], dim=-1)


def _images_of(media: Media, image: Tensor | None, rows: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """Numbers of the images that belong to rows, and how many patches each image has where they are laid end to end."""
    per_row = [0] if image is None else image.sum(dim=1).tolist()
    grid = media.get(_GRID)
    patches = None if grid is None else grid.prod(dim=-1).tolist()
    n_images = len(patches) if patches is not None else len(next(media[name] for name in _PER_IMAGE if name in media))
    sizes = [1] * n_images if patches is None else patches
    total, n_tokens = sum(sizes), sum(per_row)
    if not n_tokens or any(n_tokens * size % total for size in sizes):
        raise DataError(f"{n_images} images do not fit {n_tokens} image tokens; is the processor this model's own?")
    ends = torch.tensor(per_row).cumsum(0).tolist()
    owner, at = [], 0
    for size in sizes:
        row = next(number for number, end in enumerate(ends) if at < end)
        at += n_tokens * size // total
        if at > ends[row]:
            raise DataError(f"an image runs over the end of row {row}; do its image tokens belong to the pixels given?")
        owner.append(row)
    return [number for row in rows for number, home in enumerate(owner) if home == row], patches
