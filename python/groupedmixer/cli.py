# SPDX-License-Identifier: MIT
"""The command line: `groupedmixer compress | decompress | verify | info | eval | train`.

READ ME FIRST
- torch and Pillow are imported where they are needed: --help, --version and info start at once.
- Exit codes: see _EXIT_CODES.
- An expected failure (GmxError, OSError, no memory) is one line on stderr. Anything else is a bug
  and shows its traceback; the other files are done all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from .batch import Stop, Terminated, run_batch
from .batch_report import BatchReport, Outcome, failure, reason
from .container import FORMAT_VERSION, MAX_QUALITY, QUALITY_STEPS, parse, quality_field, read_chunks
from .errors import GmxError, MetadataWarning
from .image_formats import OUTPUT_FORMATS, OutputFormat, format_of_suffix
from .input_files import PICTURE_SUFFIXES, Found, find_inputs
from .limits import MAX_PIXELS
from .output_files import Job, PlanError, check_target, plan_outputs
from .printable import printable
from .training.command import add_train_options, settings_of

if TYPE_CHECKING:
    from .codec import Codec
    from .file_coding import Done, Region

_SUFFIX = ".gmx"
_EXPECTED = (GmxError, OSError, MemoryError)
_SIGNALLED = 128  # and the signal's number, as shells have it
_EXIT_CODES = (
    "exit status: 0 all files are done; 1 at least one failed, the others are done all the same; "
    "2 usage, nothing was done; 130 Ctrl-C, 143 SIGTERM: files are done or untouched, none half"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: the arguments behind the program's name; those of the process where None.

    Raises:
        SystemExit: --help and --version (0) and what argparse refuses (2).
    """
    code = _main(argv)
    if argv is None and code > _SIGNALLED:
        # We are the process, and pictures may still be coded that nobody waits for: see batch.py.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    # compressai's import makes PyTorch warn of a deprecation that users cannot do anything about.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    try:
        return int(args.command(args))
    except PlanError as error:
        args.parser.print_usage(sys.stderr)
        print(f"{args.parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except Terminated as signal:
        print("groupedmixer: terminated", file=sys.stderr)
        return _SIGNALLED + signal.number
    except KeyboardInterrupt:
        print("groupedmixer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + 13


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="groupedmixer",
        description="Learned image compression with a grouped context.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_compress(commands)
    _add_decompress(commands)
    _add_verify(commands)
    _add_info(commands)
    _add_eval(commands)
    _add_train(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("groupedmixer")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _add_compress(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="images to .gmx files",
        usage="%(prog)s [options] IN OUT.gmx | [-r] IN [IN ...] [-o DIR_OR_FILE]",
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="IN", help="image files, folders with -r; IN OUT.gmx for one"
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "-q",
        "--quality",
        type=_quality,
        default=4.0,
        metavar="Q",
        help=f"0 (small) to {MAX_QUALITY} (fine), fractions allowed; default %(default)s",
    )
    amount.add_argument(
        "--target-bpp",
        type=_positive_number,
        metavar="BPP",
        help="the finest quality whose file has no more bits per pixel; up to 8 encodes",
    )
    amount.add_argument(
        "--target-psnr",
        type=_positive_number,
        metavar="DB",
        help="the smallest quality whose decode has this PSNR over RGB; up to 8 encodes",
    )
    parser.add_argument("--model", default="rt", metavar="NAME", help="default %(default)s")
    parser.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="leave ICC profile, EXIF and XMP out; a wide-gamut picture will look wrong",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="decode every file before it is written, and report its PSNR over RGB",
    )
    suffixes = " ".join(suffix[1:] for suffix in PICTURE_SUFFIXES)
    _add_coding_options(
        parser,
        found=f"those with a suffix of a picture ({suffixes})",
        kept="outputs that are whole .gmx files of these weights and this quality, not older than "
        "their source; replace other .gmx files",
    )
    parser.set_defaults(command=_compress, parser=parser)


def _add_decompress(commands: Any) -> None:
    parser = commands.add_parser(
        "decompress",
        help=".gmx files to images",
        usage="%(prog)s [options] IN.gmx OUT.png | [-r] IN [IN ...] [-o DIR_OR_FILE]",
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="IN", help=".gmx files, folders with -r; IN.gmx OUT.png for one"
    )
    parser.add_argument(
        "--format",
        choices=tuple(OUTPUT_FORMATS),
        default="png",
        help="of the outputs whose name is not given (a name's suffix decides its format); "
        "default %(default)s",
    )
    parser.add_argument(
        "--region",
        type=_region,
        metavar="LEFT,TOP,WIDTH,HEIGHT",
        help="these pixels only; no more is decoded than they need",
    )
    parser.add_argument("--model", metavar="NAME", help="default: the weights that a file names")
    _add_coding_options(
        parser,
        found="those that end in .gmx",
        kept="outputs of the right format and size, not older than their source",
    )
    parser.set_defaults(command=_decompress, parser=parser)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify", help="decode .gmx files, compare checksums, write nothing", epilog=_EXIT_CODES
    )
    parser.add_argument("paths", nargs="+", metavar="IN.gmx", help=".gmx files, folders with -r")
    parser.add_argument("--model", metavar="NAME", help="default: the weights that a file names")
    _add_batch_options(parser, found="those that end in .gmx")
    parser.set_defaults(command=_verify, parser=parser)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="what .gmx files say of themselves")
    parser.add_argument("paths", nargs="+", metavar="IN.gmx")
    parser.add_argument("--json", action="store_true", help='print {"files": [...]}')
    parser.set_defaults(command=_info)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="rate and distortion on a folder of pictures; needs groupedmixer[eval]",
        description="Prints a Markdown table; progress goes to stderr. FOLDER comes before the "
        "options that take several values.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="its pictures are coded and decoded")
    parser.add_argument("--model", default="rt", metavar="NAME", help="default %(default)s")
    parser.add_argument(
        "--qualities",
        nargs="+",
        type=_quality,
        default=[float(quality) for quality in range(MAX_QUALITY + 1)],
        metavar="Q",
        help=f"default 0 1 ... {MAX_QUALITY}",
    )
    parser.add_argument(
        "--codecs",
        nargs="+",
        choices=("jpeg", "webp", "avif", "jxl"),
        help="measured in the same run; default: those that are installed",
    )
    parser.add_argument(
        "--points",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE.json",
        help="published curves of the same pictures; NAME defaults to the file's stem",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="a folder (created) for results.csv, results.json, table.md, rd.png, rd.svg, "
        "sheet.png; default: nothing is written",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--sheet-bpp",
        type=_positive_number,
        default=0.5,
        metavar="BPP",
        help="where sheet.png compares; default %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print results.json, not the table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _add_machine_options(parser)
    parser.set_defaults(command=_eval, parser=parser)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="pictures to weights; needs groupedmixer[train]")
    add_train_options(parser)
    parser.set_defaults(command=_train, parser=parser)


def _add_coding_options(parser: argparse.ArgumentParser, *, found: str, kept: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR_OR_FILE",
        help="a folder (created), or a file if there is one input; default: beside each input. "
        "What -r found keeps its place below its folder",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace existing outputs")
    parser.add_argument("--resume", action="store_true", help=f"leave {kept}")
    parser.add_argument(
        "--keep-suffix",
        action="store_true",
        help="name an output photo.jpg.gmx, not photo.gmx, so that no two have one name",
    )
    _add_batch_options(parser, found=found)


def _add_batch_options(parser: argparse.ArgumentParser, *, found: str) -> None:
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help=f"take folders, and of the files below them {found}; others are counted. Links to "
        "folders are not followed",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        type=_positive,
        default=1,
        metavar="N",
        help="files at once, which share the threads; each takes its own memory; default 1",
    )
    _add_machine_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a progress bar of files, or of one picture's tiles; default: on a terminal",
    )


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: one per core")
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse pictures of more pixels; default %(default)s",
    )


def _quality(text: str) -> float:
    try:
        value = float(text)
        quality_field(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be in 0..{MAX_QUALITY}, got {text}") from error
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text}")
    return int(text)


def _region(text: str) -> Region:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be LEFT,TOP,WIDTH,HEIGHT in pixels, got {text}")
    left, top, width, height = map(int, parts)
    if not (width and height):
        raise argparse.ArgumentTypeError(f"its width and height must be from 1 up, got {text}")
    return left, top, width, height


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _compress(args: argparse.Namespace) -> int:
    first, *others = args.paths
    is_pair = len(others) == 1 and not _is_gmx(first) and _is_gmx(others[0])
    found, jobs = _plan(args, is_pair, PICTURE_SUFFIXES, _SUFFIX)
    # Pillow warns of large pictures; ours are refused with an error instead.
    warnings.filterwarnings("ignore", message="Image size .* decompression bomb")

    def compress(codecs: _Codecs, job: Job, stop: Stop) -> Done | None:
        from .file_coding import compress_file

        return compress_file(
            codecs.named(),
            job,
            quality=args.quality,
            target_bpp=args.target_bpp,
            target_psnr=args.target_psnr,
            metadata=args.metadata,
            max_pixels=args.max_pixels,
            force=args.force,
            resume=args.resume,
            verify=args.verify,
            stop=stop,
        )

    return _run(args, found, jobs, compress)


def _decompress(args: argparse.Namespace) -> int:
    first, *others = args.paths
    is_pair = len(others) == 1 and _is_gmx(first) and not _is_gmx(others[0])
    found, jobs = _plan(args, is_pair, (_SUFFIX,), OUTPUT_FORMATS[args.format].suffixes[0])
    formats = {job.target: _format(job.target) for job in jobs}

    def decompress(codecs: _Codecs, job: Job, stop: Stop) -> Done | None:
        from .file_coding import decompress_file

        return decompress_file(
            codecs.for_file,
            job,
            formats[job.target],
            region=args.region,
            max_pixels=args.max_pixels,
            force=args.force,
            resume=args.resume,
            stop=stop,
        )

    return _run(args, found, jobs, decompress)


def _verify(args: argparse.Namespace) -> int:
    found = find_inputs(args.paths, recursive=args.recursive, suffixes=(_SUFFIX,))

    def verify(codecs: _Codecs, source: Path, stop: Stop) -> Done | None:
        from .file_coding import verify_file

        return verify_file(codecs.for_file, source, max_pixels=args.max_pixels, stop=stop)

    return _run(args, found, [one.path for one in found.inputs], verify)


def _info(args: argparse.Namespace) -> int:
    files = []
    failed = False
    for path in args.paths:
        try:
            files.append(_file_facts(path))
        except _EXPECTED as error:
            failed = True
            print(failure(path, error), file=sys.stderr)
    if args.json:
        print(json.dumps({"files": files}, indent=2))
    else:
        for facts in files:
            print(_facts_text(facts))
    return 1 if failed else 0


def _eval(args: argparse.Namespace) -> int:
    points = _named_points(args.points)
    warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    from .evaluation import OUTPUT_NAMES, Measurement, evaluate, results_json, table

    def done(name: str, measured: Sequence[Measurement]) -> None:
        if not args.quiet:
            ours = measured[: len(args.qualities)]
            print(
                f"{name}: {ours[0].bpp:.4f} to {ours[-1].bpp:.4f} bpp, {ours[0].psnr:.2f} to "
                f"{ours[-1].psnr:.2f} dB, {len(measured)} files",
                file=sys.stderr,
                flush=True,
            )

    def failed(name: str, error: Exception) -> None:
        print(failure(Path(args.folder) / name, error), file=sys.stderr, flush=True)

    try:
        if args.output is not None:
            for name in OUTPUT_NAMES:
                target = Path(args.output) / name
                if target.parent.exists():
                    check_target(target, force=args.force)
        evaluation = evaluate(
            args.folder,
            args.model,
            args.qualities,
            codecs=args.codecs,
            points=points,
            output=args.output,
            device=args.device,
            max_pixels=args.max_pixels,
            sheet_bpp=args.sheet_bpp,
            on_picture=done,
            on_failure=failed,
        )
    except (*_EXPECTED, ImportError, ValueError, RuntimeError) as error:
        print(failure("eval", error), file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(results_json(evaluation), indent=2))
    else:
        print(table(evaluation), end="")
    return 1 if evaluation.failures else 0


def _named_points(arguments: Sequence[str]) -> dict[str, str]:
    """FILE or NAME=FILE arguments as names and files."""
    points: dict[str, str] = {}
    for argument in arguments:
        name, mark, path = argument.partition("=")
        if not mark:
            name, path = Path(argument).stem, argument
        if not name or not path:
            raise PlanError(f"--points must be FILE.json or NAME=FILE.json, got {argument}")
        if name in points:
            raise PlanError(
                f"--points {points[name]} and {path} are both called {name}; write NAME=FILE.json"
            )
        points[name] = path
    return points


def _train(args: argparse.Namespace) -> int:
    try:
        settings = settings_of(args)
    except (OSError, ValueError) as error:
        raise PlanError(str(error)) from error
    try:
        from .training.loop import train

        train(settings)
    except (*_EXPECTED, ImportError, ValueError, FloatingPointError) as error:
        print(failure("training", error), file=sys.stderr)
        return 1
    return 0


def _is_gmx(path: str) -> bool:
    return path.lower().endswith(_SUFFIX)


def _plan(
    args: argparse.Namespace, is_pair: bool, suffixes: Sequence[str], suffix: str
) -> tuple[Found, tuple[Job, ...]]:
    if is_pair and not args.recursive:
        source, target = args.paths
        if args.output is not None:
            raise PlanError(f"two outputs are given, {target} and -o {args.output}")
        found = find_inputs([source], recursive=False, suffixes=())
        return found, plan_outputs(found.inputs, target, suffix, output_is_file=True)
    found = find_inputs(
        args.paths, recursive=args.recursive, suffixes=suffixes, without=args.output
    )
    jobs = plan_outputs(found.inputs, args.output, suffix, keep_suffix=args.keep_suffix)
    return found, jobs


def _format(target: Path) -> OutputFormat:
    found = format_of_suffix(target.suffix)
    if found is None:
        known = ", ".join(suffix for one in OUTPUT_FORMATS.values() for suffix in one.suffixes)
        raise PlanError(f"the output {printable(target)} must end in one of {known}")
    return found


J = TypeVar("J", Job, Path)


def _run(
    args: argparse.Namespace,
    found: Found,
    jobs: Sequence[J],
    work: Callable[[_Codecs, J, Stop], Done | None],
) -> int:
    """Does `work` for every job (None: there was nothing to do) and reports. Returns 0 or 1."""
    start = time.perf_counter()
    total = len(jobs) + len(found.unreadable)
    try:
        codecs = _Codecs(args.model, args.device, args.threads, args.jobs)
    except (*_EXPECTED, ImportError, ValueError, RuntimeError) as error:  # torch's own among them
        print(failure(f"model {args.model}" if args.model else "loading", error), file=sys.stderr)
        if args.json:
            empty = BatchReport(total, quiet=True, as_json=True, progress=False)
            empty.close(time.perf_counter() - start, found.passed_over)
        return 1

    warned = threading.local()

    show = warnings.showwarning

    def collect(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MetadataWarning):  # of the file that this thread works on
            warned.texts.append(str(message))
        else:
            show(message, category, filename, lineno, file, line)

    def attempt(job: J, stop: Stop) -> Outcome:
        source, target = (job.source, job.target) if isinstance(job, Job) else (job, None)
        begin = time.perf_counter()
        warned.texts = []
        try:
            done = work(codecs, job, stop)
        except _EXPECTED as error:
            return Outcome(source, target, error=reason(source, error))
        except Exception as error:
            traceback.print_exc()
            told = f"an error of this program, see its traceback: {type(error).__name__}: {error}"
            return Outcome(source, target, error=told)
        return Outcome(source, target, time.perf_counter() - begin, done, warnings=warned.texts)

    report = BatchReport(
        total,
        quiet=args.quiet,
        as_json=args.json,
        progress=args.progress,
        sum_up=True if args.recursive else None,
    )
    interrupted = True
    try:
        for folder, problem in found.unreadable:
            report.add(Outcome(folder, error=reason(folder, problem)))
        with warnings.catch_warnings():  # here and not in attempt(): it acts on all threads
            warnings.simplefilter("always", MetadataWarning)
            warnings.showwarning = collect
            run_batch(jobs, attempt, report.add, parallel=args.jobs, on_progress=report.tiles)
        interrupted = False
    finally:
        seconds = time.perf_counter() - start
        report.close(seconds, found.passed_over, interrupted=interrupted)
    return 1 if report.failed else 0


class _Codecs:
    """The codec that `--model` names, or else the one that a file asks for."""

    def __init__(self, model: str | None, device: str, threads: int | None, jobs: int = 1) -> None:
        if threads is not None or jobs > 1:
            import torch

            torch.set_num_threads(max((threads or torch.get_num_threads()) // jobs, 1))
        import groupedmixer
        from groupedmixer.codec import check_device

        if model is None:  # else load() checks it
            check_device(device)
        self._device = device
        self._find = groupedmixer.load_for
        self._lock = threading.Lock()  # what the first file needs is loaded once
        self._named = None if model is None else groupedmixer.load(model, device=device)

    def named(self) -> Codec:
        """The codec of `--model`."""
        assert self._named is not None, "compress has a default for --model"
        return self._named

    def for_file(self, data: bytes) -> Codec:
        """The codec of `--model` if it was given, else the one whose weights the file names."""
        if self._named is not None:
            return self._named
        try:
            with self._lock:
                return self._find(data, device=self._device)
        except (ValueError, RuntimeError) as error:  # damaged weights; a GPU that cannot be used
            raise GmxError(str(error)) from error


def _file_facts(path: str) -> dict[str, Any]:
    data = Path(path).read_bytes()
    file = parse(data)
    header = file.header
    return {
        "path": path,
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height),
        "format_version": FORMAT_VERSION,
        "weights": {
            "name": header.weights_name,
            "fingerprint": header.weights_fingerprint.hex(),
        },
        "arithmetic": header.arithmetic_id,
        "quality": header.quality / QUALITY_STEPS,
        "width": header.width,
        "height": header.height,
        "colour_space": header.colour_space.name.lower(),
        "bit_depth": header.bit_depth,
        "alpha": file.alpha is not None,
        "skip_below": header.skip_below,
        "tile_latents": header.tile_latents,
        "tiles": len(file.tiles),
        "chunks": [
            {
                "type": chunk.type,
                "must_understand": chunk.must_understand,
                "bytes": len(chunk.payload),
            }
            for chunk in read_chunks(data)
        ],
    }


def _facts_text(facts: dict[str, Any]) -> str:
    alpha = ", alpha" if facts["alpha"] else ""
    chunks = ", ".join(f"{chunk['type']} {chunk['bytes']}" for chunk in facts["chunks"])
    side = facts["tile_latents"]
    return "\n".join(
        (
            printable(facts["path"]),
            f"  file        {facts['bytes']} bytes, {facts['bpp']:.4f} bpp, "
            f"format {facts['format_version']}",
            f"  picture     {facts['width']} x {facts['height']}, {facts['colour_space']}, "
            f"{facts['bit_depth']} bits{alpha}",
            f"  quality     {facts['quality']:g}",
            f"  weights     {facts['weights']['name']} ({facts['weights']['fingerprint']})",
            f"  arithmetic  {facts['arithmetic']}",
            f"  coder       skip below {facts['skip_below']}, tiles {facts['tiles']} "
            f"(up to {side} x {side} latents)",
            f"  chunks      {chunks} bytes",
        )
    )
