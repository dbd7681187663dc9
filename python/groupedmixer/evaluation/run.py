# SPDX-License-Identifier: MIT
"""The measurement itself: every picture, codec and quality to a file on disk and back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..container import quality_field
from ..errors import GmxError
from ..image_formats import OUTPUT_FORMATS
from ..images import Picture, load_picture, to_pil
from ..limits import MAX_PIXELS
from ..metrics import ms_ssim, psnr
from .bd_rate import Comparison, compare
from .curves import Curve, read_curve
from .extras import require
from .pillow_codecs import PILLOW_CODECS, installed_codecs
from .plot import draw_curves
from .results import Evaluation, Measurement, mean_curve, write_results
from .sheet import draw_sheet
from .table import table

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["evaluate", "pictures_of"]

_SUFFIXES = (*(suffix for one in OUTPUT_FORMATS.values() for suffix in one.suffixes), ".avif")


def evaluate(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | Codec = "rt",
    qualities: Sequence[float] = tuple(range(8)),
    *,
    codecs: Sequence[str] | None = None,
    points: Mapping[str, str | os.PathLike[str]] | None = None,
    output: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
    sheet_bpp: float = 0.5,
    on_picture: Callable[[str, Sequence[Measurement]], None] = lambda name, measured: None,
    on_failure: Callable[[str, Exception], None] = lambda name, error: None,
) -> Evaluation:
    """Measures a codec, and others beside it, on the pictures of a folder.

    Every picture is coded to a file at every quality, the file's size is taken from the disk, and
    what it decodes to is compared with the picture: PSNR and MS-SSIM over RGB, a picture at a
    time, then the mean. Alpha planes are dropped first, as not every format has them. A picture
    that cannot be read or coded is left out of every mean.

    Parameters
    ----------
    folder
        Its image files are taken, not those of folders in it.
    model
        As for `groupedmixer.load`, or a codec.
    qualities
        At least one, 0..7, none twice.
    codecs
        Of ``"jpeg"``, ``"webp"``, ``"avif"``, ``"jxl"``; those that are installed where None.
    points
        Name -> JSON file of a published curve, see `read_curve`, to be compared with. It should
        be of the same pictures.
    output
        A folder, created if need be, for the files of `OUTPUT_NAMES`; they are replaced. Nothing
        is written where None.
    device
        Of the model, if ``model`` is not a codec: ``"cpu"`` or ``"cuda"``.
    max_pixels
        Larger pictures are skipped.
    sheet_bpp
        Rate at which sheet.png compares, bits per pixel.
    on_picture
        Called with a picture's file name and its measurements when it is done.
    on_failure
        Called with a picture's file name and the reason when it is skipped.

    Returns
    -------
    Evaluation
        Its ``failures`` say what was skipped.

    Raises
    ------
    GmxError
        If there is no picture in the folder, or none that can be measured.
    ImportError
        If the extra ``eval`` is not installed.
    ValueError
        If an argument breaks its rule, a codec is not installed or a file of ``points`` holds no
        curve; and as `groupedmixer.load`.
    OSError
        If a folder or file cannot be read or written.
    """
    for module in ("bjontegaard", "matplotlib"):
        require(module)  # before the work, not behind it
    qualities = _check_qualities(qualities)
    names = installed_codecs() if codecs is None else _check_codecs(codecs)
    published = {name: read_curve(path) for name, path in (points or {}).items()}
    for name in published:
        if name in PILLOW_CODECS:
            raise ValueError(
                f"points must not be called as a codec that may be measured, got {name!r}; give "
                "them another name"
            )
    paths = pictures_of(folder)
    target = None if output is None else Path(output)
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    name, codec = _named_codec(model, device)

    measurements: list[Measurement] = []
    failures: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="groupedmixer-eval-") as scratch:
        for path in paths:
            try:
                picture = _opaque(load_picture(path, max_pixels))
                ours = _measure_ours(path.name, picture, name, codec, qualities, Path(scratch))
                others = _measure_others(path.name, picture, names, Path(scratch))
                measured = [*ours, *others]
            except (GmxError, OSError, MemoryError) as error:
                failures.append((path.name, str(error) or "not enough memory"))
                on_failure(path.name, error)
            else:
                measurements += measured
                on_picture(path.name, measured)
    if not measurements:
        raise GmxError(f"{folder}: none of its {len(paths)} pictures could be measured")

    curves = {
        label: mean_curve([one for one in measurements if one.codec == label])
        for label in (name, *names)
    }
    against = {**{label: curves[label] for label in names}, **published}
    evaluation = Evaluation(
        name=name,
        weights=f"{codec.name}, {codec.fingerprint.hex()}",
        measurements=tuple(measurements),
        curves=curves,
        published=published,
        bd_rate=_compared(curves[name], against, "psnr"),
        bd_rate_ms_ssim=_compared(curves[name], against, "ms_ssim"),
        failures=tuple(failures),
    )
    if target is not None:
        write_results(evaluation, target)
        (target / "table.md").write_text(table(evaluation), encoding="utf-8")
        draw_curves(evaluation, [target / "rd.png", target / "rd.svg"])
        draw_sheet(
            [path for path in paths if path.name in evaluation.pictures],
            name,
            codec,
            [label for label in names if label in ("jpeg", "webp")],
            sheet_bpp,
            max_pixels,
        ).save(target / "sheet.png")
    return evaluation


def pictures_of(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder by name, told by their suffixes.

    Raises
    ------
    OSError
        If it is no folder that can be read.
    GmxError
        If there are none.
    """
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise GmxError(
            f"{os.fspath(folder)} must hold pictures ({' '.join(_SUFFIXES)}), there are none"
        )
    return paths


def _check_qualities(qualities: Sequence[float]) -> list[float]:
    """In rising order."""
    if not qualities:
        raise ValueError("qualities must have at least one value, got none")
    fields = [quality_field(quality) for quality in qualities]
    if len(set(fields)) < len(fields):
        raise ValueError(f"qualities must be different, got {list(qualities)}")
    return sorted(float(quality) for quality in qualities)


def _check_codecs(codecs: Sequence[str]) -> tuple[str, ...]:
    for name in codecs:
        if name not in PILLOW_CODECS:
            raise ValueError(f"codecs must be of {', '.join(PILLOW_CODECS)}, got {name!r}")
        if not PILLOW_CODECS[name].is_installed():
            package = PILLOW_CODECS[name].package
            remedy = (
                f"pip install {package.replace('_', '-')}-plugin" if package else "reinstall it"
            )
            raise ValueError(f"codecs: this Pillow cannot write {name} ({remedy})")
    return tuple(dict.fromkeys(codecs))


def _named_codec(model: str | os.PathLike[str] | Codec, device: str) -> tuple[str, Codec]:
    """The codec, and its name in the results."""
    if not isinstance(model, str | os.PathLike):
        return f"groupedmixer-{model.name}", model
    import groupedmixer

    codec = groupedmixer.load(model, device=device)
    given = os.fspath(model)
    return f"groupedmixer-{codec.name if given.endswith('.safetensors') else given}", codec


def _opaque(picture: Picture) -> Picture:
    return Picture(picture.rgb, None, picture.grey)


def _measure_ours(
    file_name: str,
    picture: Picture,
    name: str,
    codec: Codec,
    qualities: Sequence[float],
    scratch: Path,
) -> Iterator[Measurement]:
    for quality in qualities:
        path = scratch / "picture.gmx"
        path.write_bytes(codec.compress(picture, quality))
        decoded = codec.decompress(path.read_bytes(), max_pixels=picture.width * picture.height)
        yield _measurement(
            file_name, name, quality, picture, path, np.array(decoded.convert("RGB"))
        )


def _measure_others(
    file_name: str, picture: Picture, names: Sequence[str], scratch: Path
) -> Iterator[Measurement]:
    image = to_pil(picture)
    for name in names:
        codec = PILLOW_CODECS[name]
        for quality in codec.qualities:
            path = scratch / f"picture{codec.suffix}"
            path.write_bytes(codec.encode(image, quality))
            yield _measurement(file_name, name, quality, picture, path, codec.decode(path))


def _measurement(
    file_name: str,
    codec: str,
    quality: float,
    picture: Picture,
    path: Path,
    decoded: npt.NDArray[np.uint8],  # [H, W, 3]
) -> Measurement:
    return Measurement(
        picture=file_name,
        codec=codec,
        quality=quality,
        width=picture.width,
        height=picture.height,
        bytes=path.stat().st_size,
        psnr=psnr(picture.rgb, decoded),
        ms_ssim=ms_ssim(picture.rgb, decoded),
    )


def _compared(ours: Curve, against: Mapping[str, Curve], metric: str) -> dict[str, Comparison]:
    found = {}
    for name, curve in against.items():
        comparison = compare(ours, curve, "psnr" if metric == "psnr" else "ms_ssim")
        if comparison is not None:
            found[name] = comparison
    return found
