"""What an extraction is about, in one table: the images, their classes, what the network is fed and returns, and its layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image

from extract.classes import ClassMapping, imagenet_classes
from extract.image_io import grey_values, is_deep, orientation_of, range_of_depth, shown
from extract.image_source import ImageSource
from extract.layer_choice import head_costs
from extract.loader import Decode
from extract.network import Network
from extract.video_rows import has_videos
from stores.errors import EDDPError, UsageError

SAMPLE = 32  # images that are read, spread evenly
_LITTLE = 0.25  # of its range: deep grey that uses less is likely to have another
_MUCH = 0.5  # of an image outside its range
_MODES = {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette"}
Part = tuple[list[list[str]], list[str]]  # rows, and warnings of what is doubtful


def overview(
    source: ImageSource,
    classes: ClassMapping,
    networks: Sequence[Network],
    limit: int | None = None,
    rows: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Describe an extraction of some layers (one network a layer) of a source's images (the first ``limit``), some of which are read.

    ``rows`` : what a video becomes, see ``extract.plan.rows_of``.

    Returns
    -------
    dict, JSON-able
        ``rows`` of [what, how it is], and ``warnings`` of what is doubtful.
    """
    taken = len(source) if limit is None else min(limit, len(source))
    some = "" if taken == len(source) else f"the first {taken} of "
    each = "".join(
        f"; {count} {what} of each video, spread evenly" for what, count in (rows or {}).items() if count > 1
    )
    images = [["images", f"{some}{len(source)}, read as {source.kind}{each}"]]
    if source.left_out:
        kinds = sorted(source.left_out.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count} {shown(ending)}" for ending, count in kinds[:8])
        more = ", …" if len(kinds) > 8 else ""
        images.append(["not read", f"{sum(source.left_out.values())} files: {named}{more}"])
    sample = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int)).tolist()
    with ThreadPoolExecutor(2, thread_name_prefix="look") as pool:
        looks = list(pool.map(lambda row: _look(source, row, networks[0]), sample))
    frames = networks[0].transform.frames
    doubt = f"the network takes clips, and these are images: each is repeated {frames} times, and nothing moves in it"
    parts = [
        (images, [doubt] * (frames is not None and not has_videos(source))),
        _classes(source, classes),
        _pixels(looks, networks[0]),
        _network(networks),
    ]
    return {"rows": list(chain(*(rows for rows, _ in parts))), "warnings": list(chain(*(found for _, found in parts)))}


def _classes(source: ImageSource, classes: ClassMapping) -> Part:
    names, known = source.class_names, classes.numbers is not None
    titles = ", ".join(f"{shown(name)} {imagenet_classes().get(name, '')}".strip() for name in (names or [])[:4])
    rows = [["classes", f"{len(names)}: {titles}{', …' if len(names) > 4 else ''}" if names else "none"]]
    if names or classes.doubt:
        rows.append(["as the network's", classes.how if known else f"not known: {classes.how}"])
    doubt = f"the classes of the images are not the network's, so accuracy is not known: {classes.how}"
    if known:
        doubt = f"the classes of the images are matched with the network's {classes.how}; --class-names FILE makes sure"
    return rows, [doubt] if classes.doubt else []


@dataclass(frozen=True)
class _Look:
    """What one image is: ``kind`` in words, its size, whether it has an EXIF orientation, several frames; of deep grey
    the share of the range that is used, its values, and the share of pixels outside the range."""

    kind: str
    size: tuple[int, int]
    turned: bool = False
    frames: bool = False
    used: float = 1.0
    deep: str = ""
    outside: float = 0.0


def _look(source: ImageSource, row: int, network: Network) -> _Look | None:
    """None for an image that cannot be read or used: that is reported when its turn comes.

    Raises UsageError where the user has to decide how such images are read.
    """
    try:
        image = source.image(row)
    except EDDPError:
        return None
    given = Decode(source, network.transform, []).transformed(row, image)
    if isinstance(given, str):
        return None
    size, name = network.input_size, shown(source.name(row))
    if given.shape[-2:] != size:
        width, height = image.size if isinstance(image, Image.Image) else network.transform.taken(image)[0].size
        gives = f"{tuple(given.shape)} for '{name}' ({width} × {height}), and {size[0]} × {size[1]} for a square image"
        then = "End it with CenterCrop or Resize((HEIGHT, WIDTH))"
        raise UsageError(f"The model's transform gives {gives}: all must reach the network in one size. {then}.")
    if not torch.equal(given.nan_to_num(), network.transform(image).nan_to_num()):
        raise UsageError(f"The model's transform gives '{name}' differently each time. Give the one for evaluation.")
    if not isinstance(image, Image.Image):
        still = network.transform.taken(image)[0]
        return _Look("video", still.size)
    turned, frames = orientation_of(image) != 1, getattr(image, "n_frames", 1) > 1
    if not is_deep(image):
        return _Look(_MODES.get(image.mode, image.mode), image.size, turned, frames)
    values, depth = np.nan_to_num(grey_values(image)), range_of_depth(image)
    black, white = network.transform.grey_range or depth or (0, 1)
    share = (values - black) / (white - black)
    kind = f"grey of {int(max(depth)).bit_length()} bits" if depth else f"grey of more than 8 bits ({image.mode})"
    outside = float(((share < 0) | (share > 1)).mean())
    deep = f"{values.min():g} to {values.max():g}"
    return _Look(kind, image.size, turned, frames, float(share.max()), deep, outside)


def _pixels(looks: Sequence[_Look | None], network: Network) -> Part:
    read = [look for look in looks if look is not None]
    of = f"of {len(looks)} looked at"
    if not read:
        return [], [f"none of {len(looks)} images looked at can be read"]
    warnings = []
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(look.kind for look in read).most_common())
    missing = f", {len(looks) - len(read)} cannot be read" if len(read) < len(looks) else ""
    sizes = [look.size for look in read]
    smallest, largest = min(sizes, key=math.prod), max(sizes, key=math.prod)
    size = f"{smallest[0]} × {smallest[1]}" + (f" to {largest[0]} × {largest[1]}" if smallest != largest else "")
    rows = [["pixels", f"{kinds} {of}{missing}; {size}"]]
    if turned := sum(look.turned for look in read):
        rows.append(["orientation", f"not applied, as by torchvision ({turned} {of} have one in their EXIF)"])
        warnings.append(
            f"{turned} {of} carry an EXIF orientation, which is not applied: the network sees them as they are stored"
        )
    if frames := sum(look.frames for look in read):
        rows.append(["frames", f"the first of each image ({frames} {of} have several)"])
    deep, grey_range = [look for look in read if look.deep], network.transform.grey_range
    if not deep and grey_range is None:
        return rows, warnings
    how = "scaled by the depth of the file"
    if grey_range:
        how = f"{grey_range[0]:g} is black, {grey_range[1]:g} white (--grey-range)"
    rows.append(["grey of > 8 bits", f"{how}; values {deep[0].deep} in the first" if deep else how])
    used, outside = max((look.used for look in deep), default=1.0), max((look.outside for look in deep), default=0.0)
    if not deep:
        warnings.append("--grey-range is for grey images of more than 8 bits; none of those looked at is one")
    elif used < _LITTLE:
        warnings.append(
            f"the grey images of more than 8 bits use {used:.1%} of their range and will be dark: give --grey-range LOW,HIGH if other "
            "values are black and white (0,4095 for 12 bits)"
        )
    elif outside > _MUCH:
        warnings.append(
            f"{outside:.0%} of the pixels of a grey image are outside its range, and become black or white: see --grey-range"
        )
    return rows, warnings


def _network(networks: Sequence[Network]) -> Part:
    first, output = networks[0], networks[0].output
    shape, transform = " × ".join(map(str, first.probe.shape[1:])), first.transform
    given = {"RGB": "RGB", "L": "grey", "RGBA": "four channels as they are"}[transform.mode]
    clips = f"clips of {transform.frames} frames, {transform.rate:g} a second, " if transform.frames else ""
    fed = f"{clips}{given}, {shape}, values about {float(first.probe.min()):.2g} to {float(first.probe.max()):.2g}"
    returned = f"{output.classes} logits: {output.key and f'{output.key!r}, '}{output.how}"
    rows, heads = [["network input", fed], ["network output", returned]], head_costs(networks)
    for network in networks:
        found = network.found
        seen = "" if found.seen is None else f"; {found.seen:.0%} of changed patches show in the right place"
        how = "as --layout says" if found.how == "--layout" else f"found {found.how}"
        rows.append([f"layer {network.layer}", f"{found.layout} ({how}{seen})"])
        rows.append([f"after {network.layer}", str(heads[network.layer])])
    return rows, [doubt for doubt in (output.doubt, *(network.found.doubt for network in networks)) if doubt]
